//! ZooKeeper's operation codes, error codes and special xids, by the names that its clients print.

use std::fmt;

/// Xid of a watch's notification; the server alone sends it.
pub const XID_NOTIFICATION: i32 = -1;
/// Xid of a ping.
pub const XID_PING: i32 = -2;
/// Xid of an auth packet.
pub const XID_AUTH: i32 = -4;
/// Xid of setWatches and setWatches2.
pub const XID_SET_WATCHES: i32 = -8;

/// Numbers of the operations in a request header or a multi header.
pub mod op {
    /// Ends a multi; no operation.
    pub const NONE: i32 = -1;
    /// Make a node.
    pub const CREATE: i32 = 1;
    /// Remove a node.
    pub const DELETE: i32 = 2;
    /// Stat of a node, or none.
    pub const EXISTS: i32 = 3;
    /// Data and stat of a node.
    pub const GET_DATA: i32 = 4;
    /// Replace a node's data.
    pub const SET_DATA: i32 = 5;
    /// ACL and stat of a node.
    pub const GET_ACL: i32 = 6;
    /// Replace a node's ACL.
    pub const SET_ACL: i32 = 7;
    /// Names of a node's children.
    pub const GET_CHILDREN: i32 = 8;
    /// A barrier: what was written before is seen after.
    pub const SYNC: i32 = 9;
    /// Keeps the session alive.
    pub const PING: i32 = 11;
    /// Names of a node's children, and its stat.
    pub const GET_CHILDREN2: i32 = 12;
    /// A version's check, inside a multi alone.
    pub const CHECK: i32 = 13;
    /// Several writes, all or nothing.
    pub const MULTI: i32 = 14;
    /// As create, answering with a stat too.
    pub const CREATE2: i32 = 15;
    /// Change the ensemble's members.
    pub const RECONFIG: i32 = 16;
    /// Whether such a watch is set.
    pub const CHECK_WATCHES: i32 = 17;
    /// Remove a watch.
    pub const REMOVE_WATCHES: i32 = 18;
    /// Make a node that goes when its last child has gone.
    pub const CREATE_CONTAINER: i32 = 19;
    /// The server's own removal of a container.
    pub const DELETE_CONTAINER: i32 = 20;
    /// Make a node that goes when it has been left alone for long enough.
    pub const CREATE_TTL: i32 = 21;
    /// Several reads, each with a result of its own.
    pub const MULTI_READ: i32 = 22;
    /// Add an identity to the connection.
    pub const AUTH: i32 = 100;
    /// Register watches anew after a reconnect.
    pub const SET_WATCHES: i32 = 101;
    /// SASL's tokens; not served.
    pub const SASL: i32 = 102;
    /// The session's ephemeral nodes below a prefix.
    pub const GET_EPHEMERALS: i32 = 103;
    /// How many descendants a node has.
    pub const GET_ALL_CHILDREN_NUMBER: i32 = 104;
    /// As setWatches, with persistent watches too.
    pub const SET_WATCHES2: i32 = 105;
    /// Add a persistent watch.
    pub const ADD_WATCH: i32 = 106;
    /// The connection's identities.
    pub const WHO_AM_I: i32 = 107;
    /// A session's beginning: inside the server alone.
    pub const CREATE_SESSION: i32 = -10;
    /// End the session.
    pub const CLOSE_SESSION: i32 = -11;
}

/// An error as it stands in a reply header; 0 is success.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErrorCode(i32);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $raw:literal;)*) => {
        impl ErrorCode {
            $($(#[$doc])* pub const $name: Self = Self($raw);)*

            /// ZooKeeper's name of the code, if it has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($raw => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// Success.
    OK = 0;
    /// The server failed in a way that has no code.
    SYSTEM_ERROR = -1;
    /// What the parts of a multi behind the failing one say.
    RUNTIME_INCONSISTENCY = -2;
    /// The connection broke; clients make it up themselves.
    CONNECTION_LOSS = -4;
    /// The request's bytes make no sense.
    MARSHALLING_ERROR = -5;
    /// The operation isn't served.
    UNIMPLEMENTED = -6;
    /// It took too long.
    OPERATION_TIMEOUT = -7;
    /// An argument is outside its range, a path is malformed.
    BAD_ARGUMENTS = -8;
    /// There is no such session.
    UNKNOWN_SESSION = -12;
    /// The new configuration's majority is not there.
    NEW_CONFIG_NO_QUORUM = -13;
    /// One change of the configuration at a time.
    RECONFIG_IN_PROGRESS = -14;
    /// There is no such node.
    NO_NODE = -101;
    /// The ACL forbids it.
    NO_AUTH = -102;
    /// The node's version is another.
    BAD_VERSION = -103;
    /// An ephemeral node can't have children.
    NO_CHILDREN_FOR_EPHEMERALS = -108;
    /// The node is there already.
    NODE_EXISTS = -110;
    /// The node has children.
    NOT_EMPTY = -111;
    /// The session has expired.
    SESSION_EXPIRED = -112;
    /// The client's own complaint about its callback.
    INVALID_CALLBACK = -113;
    /// An ACL that can't be.
    INVALID_ACL = -114;
    /// The credentials were refused; the connection closes.
    AUTH_FAILED = -115;
    /// The session has moved to another server.
    SESSION_MOVED = -118;
    /// A write to a server that serves reads alone.
    NOT_READ_ONLY = -119;
    /// An ephemeral node for a session that is known to one server alone.
    EPHEMERAL_ON_LOCAL_SESSION = -120;
    /// There is no such watch.
    NO_WATCHER = -121;
    /// The request waited too long.
    REQUEST_TIMEOUT = -122;
    /// Changes of the configuration are switched off.
    RECONFIG_DISABLED = -123;
    /// The server wants SASL.
    SESSION_CLOSED_REQUIRE_SASL_AUTH = -124;
    /// A hard quota would be exceeded.
    QUOTA_EXCEEDED = -125;
    /// The server has too much to do.
    THROTTLED_OP = -127;
}

impl ErrorCode {
    /// Wraps the raw code.
    pub const fn new(raw: i32) -> Self {
        Self(raw)
    }

    /// The raw code, for the wire.
    pub const fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
