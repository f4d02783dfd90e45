//! Random steps: requests of every kind on a few paths, so that they meet; some of them wrong on purpose.

use bytes::{BufMut, Bytes, BytesMut};
use loggos_protocol::ids::Zxid;
use loggos_protocol::zookeeper::code::{XID_AUTH, XID_SET_WATCHES, op};
use loggos_protocol::zookeeper::request::{Create, SetWatches};
use loggos_protocol::zookeeper::{Acl, Id, Request};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// How many clients a run has.
pub const CLIENTS: usize = 3;
/// The most requests that are sent at once.
const AHEAD: usize = 5;
const QUOTAS: &str = "/zookeeper/quota";

/// What is done next, on both servers.
#[derive(Debug)]
pub enum Step {
    /// A client sends requests in one write.
    Send { client: usize, sent: Vec<Sent> },
    /// A client loses its connection and comes back with its session.
    Reconnect { client: usize },
    /// A client ends its session and begins another.
    Renew { client: usize },
}

impl Step {
    /// Whether a session ends in it.
    pub fn closes(&self) -> bool {
        match self {
            Self::Renew { .. } => true,
            Self::Reconnect { .. } => false,
            Self::Send { sent, .. } => sent.iter().any(|sent| sent.payload(0).1 == op::CLOSE_SESSION),
        }
    }
}

/// One frame.
#[derive(Debug)]
pub enum Sent {
    /// As a client would send it.
    Request { xid: i32, request: Request },
    /// As no client should: cut short, or with more behind it.
    Bytes { xid: i32, code: i32, payload: Bytes },
}

impl Sent {
    /// Xid, operation and payload; zxids count from `base`.
    pub fn payload(&self, base: i64) -> (i32, i32, Bytes) {
        match self {
            Self::Bytes { xid, code, payload } => (*xid, *code, payload.clone()),
            Self::Request { xid, request } => {
                let mut request = request.clone();
                if let Request::SetWatches(watches) | Request::SetWatches2(watches) = &mut request {
                    watches.relative_zxid = Zxid::new(base + watches.relative_zxid.raw());
                }
                let mut payload = BytesMut::new();
                request.encode(*xid, &mut payload);
                (*xid, request.op(), payload.freeze())
            }
        }
    }
}

/// Makes the steps of one seed.
pub struct Operations {
    rng: StdRng,
    folder: String,
    /// Paths that creates gave.
    known: Vec<String>,
    /// ZooKeeper holds against a quota what is applied, not what is on its way: with quotas, one write at a time.
    quotas: bool,
    steps: i64,
    xid: i32,
}

impl Operations {
    pub fn new(seed: u64) -> Self {
        let folder = format!("/d{seed}");
        let (rng, known) = (StdRng::seed_from_u64(seed), vec![folder.clone()]);
        Self { rng, known, folder, quotas: seed.is_multiple_of(3), steps: 0, xid: 10 }
    }

    /// The run's first step: its folder.
    pub fn first(&mut self) -> Step {
        let request = self.create(self.folder.clone(), Acl::open(), 0);
        Step::Send { client: 0, sent: vec![self.sent(request)] }
    }

    /// What came back names new nodes: sequential ones can be met again.
    pub fn learn(&mut self, seen: &[String]) {
        for line in seen {
            let made = line.split(' ').find(|word| word.starts_with(&self.folder));
            if line.contains(": op 1")
                && let Some(path) = made
                && self.known.len() < 40
            {
                self.known.push(path.to_owned());
            }
        }
    }

    fn below(&mut self, count: usize) -> usize {
        self.rng.random_range(0..count)
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }

    pub fn next(&mut self) -> Step {
        self.steps += 1;
        let client = self.below(CLIENTS);
        match self.below(60) {
            0..=2 => return Step::Reconnect { client },
            3 => return Step::Renew { client },
            // Auth is answered out of band by ZooKeeper: alone, its place is clear.
            4..=6 => return Step::Send { client, sent: vec![self.auth()] },
            7 => return Step::Send { client, sent: vec![self.wrong()] },
            8..=9 if self.quotas => return Step::Send { client, sent: self.quota() },
            _ => {}
        }
        let mut sent = Vec::new();
        let ahead = if self.quotas { 1 } else { AHEAD };
        for _ in 0..=self.below(ahead) {
            let request = self.request();
            // ZooKeeper 3.9 checks what is sent right behind a setACL by the ACL of before.
            let last = matches!(request, Request::SetAcl { .. });
            sent.push(self.sent(request));
            if last {
                break;
            }
        }
        Step::Send { client, sent }
    }

    fn sent(&mut self, request: Request) -> Sent {
        self.xid += 1;
        let xid = match request {
            Request::SetWatches(_) | Request::SetWatches2(_) => XID_SET_WATCHES,
            _ => self.xid,
        };
        Sent::Request { xid, request }
    }

    fn path(&mut self) -> String {
        match self.below(40) {
            0 => return self.odd_path(),
            1 => return self.pick(&["/", "/zookeeper", "/zookeeper/config", QUOTAS]).to_owned(),
            2 => return format!("{QUOTAS}{}", self.folder),
            3..=12 => return self.pick(&self.known.clone()),
            _ => {}
        }
        let mut path = self.folder.clone();
        for _ in 0..self.pick(&[1, 1, 2, 2, 2, 3]) {
            path.push('/');
            path.push_str(self.pick(&["a", "a", "b"]));
        }
        path
    }

    fn odd_path(&mut self) -> String {
        let folder = &self.folder;
        let paths = [
            String::new(),
            "a".to_owned(),
            "//".to_owned(),
            format!("{folder}/"),
            format!("{folder}//a"),
            format!("{folder}/./a"),
            format!("{folder}/.."),
            format!("{folder}/a\0b"),
            format!("{folder}/\u{1}"),
            format!("{folder}/\u{85}"),
            format!("{folder}/\u{e000}"),
            format!("{folder}/\u{fff0}"),
            format!("{folder}/\u{e9}"),
            format!("{folder}/..a"),
            "/zookeeper/b".to_owned(),
        ];
        self.pick(&paths)
    }

    fn data(&mut self) -> Option<Bytes> {
        match self.below(6) {
            0 => None,
            1 => Some(Bytes::new()),
            length => Some(Bytes::from(vec![b'x'; length * 3])),
        }
    }

    fn version(&mut self) -> i32 {
        self.pick(&[-1, -1, -1, -1, -1, -1, 0, 0, 1, 2, 7, -2])
    }

    fn acl(&mut self) -> Vec<Acl> {
        let acl = |perms: i32, scheme: &str, id: &str| Acl {
            perms,
            id: Id { scheme: scheme.to_owned(), id: id.to_owned() },
        };
        match self.below(45) {
            0 => vec![acl(1, "world", "anyone")],
            1 => vec![acl(31, "auth", "")],
            // As ZooKeeper keeps one:pw and two:pw.
            2 => vec![acl(31, "digest", &loggos_coordinator::tree::digest_id("one:pw"))],
            3 => vec![
                acl(31, "digest", &loggos_coordinator::tree::digest_id("two:pw")),
                acl(1, "world", "anyone"),
            ],
            4 => vec![acl(31, "ip", "127.0.0.1")],
            5 => vec![acl(31, "ip", "10.0.0.0/8"), acl(5, "world", "anyone")],
            6 => vec![],
            7 => vec![acl(31, "nonsense", "x")],
            8 => vec![acl(31, "world", "someone")],
            9 => vec![acl(31, "digest", "without-colon")],
            10 => vec![acl(31, "world", "anyone"), acl(31, "world", "anyone")],
            11 => vec![acl(30, "world", "anyone")],
            12 => vec![acl(17, "auth", "ignored"), acl(2, "world", "anyone")],
            13 => vec![acl(0, "world", "anyone")],
            14 => vec![acl(self.pick(&[32, -1, 3]), "world", "anyone")],
            _ => Acl::open(),
        }
    }

    fn create(&mut self, path: String, acl: Vec<Acl>, flags: i32) -> Request {
        let (code, ttl_ms) = match flags {
            4 if !self.one_in(8) => (op::CREATE_CONTAINER, None),
            0 | 1 if self.one_in(12) => (op::CREATE_CONTAINER, None),
            5 | 6 if !self.one_in(8) => {
                (op::CREATE_TTL, Some(self.pick(&[1_000_000, 3_600_000, 0, -1, 1 << 40, (1 << 40) - 1])))
            }
            _ => (self.pick(&[op::CREATE, op::CREATE2]), None),
        };
        Request::Create(Create { op: code, path, data: self.data(), acl, flags, ttl_ms })
    }

    fn random_create(&mut self) -> Request {
        let flags = self.pick(&[0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 9]);
        let mut path = self.path();
        if matches!(flags, 2 | 3 | 6) {
            let end = self.pick(&["", "-", "/", "/n-"]);
            path.push_str(end);
        }
        let acl = self.acl();
        self.create(path, acl, flags)
    }

    fn write(&mut self) -> Request {
        match self.below(10) {
            0..=4 => self.random_create(),
            5..=6 => Request::Delete { path: self.path(), version: self.version() },
            _ => Request::SetData { path: self.path(), data: self.data(), version: self.version() },
        }
    }

    fn request(&mut self) -> Request {
        match self.below(100) {
            0..=34 => self.write(),
            35..=38 => {
                // Nobody can shut everybody out of the root.
                let path = self.pick(&self.known.clone());
                Request::SetAcl { path, acl: self.acl(), version: self.version() }
            }
            39..=42 => Request::GetAcl { path: self.path() },
            43..=49 => Request::Exists { path: self.path(), watch: self.one_in(2) },
            50..=56 => Request::GetData { path: self.path(), watch: self.one_in(2) },
            57..=59 => Request::GetChildren { path: self.path(), watch: self.one_in(2) },
            60..=63 => Request::GetChildren2 { path: self.path(), watch: self.one_in(2) },
            64..=75 => {
                let most = if self.quotas { 2 } else { 5 };
                let count = self.below(most);
                Request::Multi((0..count).map(|_| self.part()).collect())
            }
            76..=79 => {
                let count = self.below(4);
                let part = |own: &mut Self| match own.below(2) {
                    0 => Request::GetData { path: own.path(), watch: own.one_in(2) },
                    _ => Request::GetChildren { path: own.path(), watch: own.one_in(2) },
                };
                Request::MultiRead((0..count).map(|_| part(self)).collect())
            }
            80..=85 => Request::AddWatch { path: self.path(), mode: self.pick(&[0, 0, 0, 1, 1, 1, 1, 2]) },
            86..=88 => Request::RemoveWatches { path: self.path(), kind: self.watch_kind() },
            89..=90 => Request::CheckWatches { path: self.path(), kind: self.watch_kind() },
            91..=94 => self.set_watches(),
            95 => Request::Sync { path: self.path() },
            96 => Request::WhoAmI,
            97 => Request::GetEphemerals {
                prefix: self.pick(&["/".to_owned(), self.folder.clone(), String::new()]),
            },
            _ => Request::GetAllChildrenNumber { path: self.path() },
        }
    }

    fn part(&mut self) -> Request {
        match self.below(5) {
            0 => Request::Check { path: self.path(), version: self.version() },
            _ => self.write(),
        }
    }

    fn watch_kind(&mut self) -> i32 {
        self.pick(&[1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6])
    }

    fn set_watches(&mut self) -> Request {
        let relative = self.rng.random_range(0..=self.steps * 4);
        let mut paths = || {
            let count = self.below(3);
            (0..count).map(|_| self.path()).collect::<Vec<_>>()
        };
        let mut watches = SetWatches {
            relative_zxid: Zxid::new(relative),
            data: paths(),
            exist: paths(),
            child: paths(),
            ..SetWatches::default()
        };
        let (persistent, recursive) = (paths(), paths());
        if self.one_in(3) {
            return Request::SetWatches(watches);
        }
        (watches.persistent, watches.recursive) = (persistent, recursive);
        Request::SetWatches2(watches)
    }

    fn auth(&mut self) -> Sent {
        let (scheme, auth) = match self.below(14) {
            0..=4 => ("digest", "one:pw"),
            5..=7 => ("digest", "two:pw"),
            8 => ("digest", "one:wrong"),
            9 => ("digest", "super:test"),
            10 => ("digest", "nobody"),
            11 => ("ip", "1.2.3.4"),
            12 => ("world", "anyone"),
            _ => ("nonsense", "x"),
        };
        let request =
            Request::Auth { kind: 0, scheme: scheme.to_owned(), auth: Bytes::from_static(auth.as_bytes()) };
        Sent::Request { xid: XID_AUTH, request }
    }

    /// What ends a connection, or should never have been sent.
    fn wrong(&mut self) -> Sent {
        self.xid += 1;
        let xid = self.xid;
        match self.below(6) {
            0 => self.sent(Request::Check { path: self.folder.clone(), version: -1 }),
            1 => {
                let code = self.pick(&[999, 10, -7, 0]);
                let mut payload = BytesMut::new();
                payload.put_i32(xid);
                payload.put_i32(code);
                Sent::Bytes { xid, code, payload: payload.freeze() }
            }
            2 => {
                // Reads only between writes, and the other way about.
                let parts = vec![Request::GetData { path: self.path(), watch: false }, self.part()];
                let request = if self.one_in(2) { Request::Multi(parts) } else { Request::MultiRead(parts) };
                self.sent(request)
            }
            3 => self.sent(Request::CloseSession),
            kind => {
                let request = self.request();
                let (_, code, payload) = self.sent(request).payload(0);
                let payload = if kind == 4 {
                    payload.slice(..8 + self.below(payload.len() - 7))
                } else {
                    [&payload[..], b"more"].concat().into()
                };
                let xid = payload.first_chunk::<4>().map_or(xid, |bytes| i32::from_be_bytes(*bytes));
                Sent::Bytes { xid, code, payload }
            }
        }
    }

    /// Limits for a node of ours, as zkCli's setquota makes them; or changes of them.
    fn quota(&mut self) -> Vec<Sent> {
        let limited = self.pick(&[self.folder.clone(), format!("{}/a", self.folder)]);
        let kept = format!("{QUOTAS}{limited}");
        let text = self.pick(&[
            "count=3,bytes=-1",
            "count=-1,bytes=-1=;byteHardLimit=-1;countHardLimit=4",
            "count=-1,bytes=-1=;byteHardLimit=40;countHardLimit=-1",
            "count=5,bytes=5=;byteHardLimit=60;countHardLimit=6",
        ]);
        let limits = Some(Bytes::from_static(text.as_bytes()));
        let open = |path: String, data: Option<Bytes>| {
            Request::Create(Create { op: op::CREATE, path, data, acl: Acl::open(), flags: 0, ttl_ms: None })
        };
        let requests = match self.below(5) {
            0..=2 => vec![
                open(format!("{QUOTAS}{}", self.folder), None),
                open(kept.clone(), None),
                open(format!("{kept}/zookeeper_limits"), limits),
                open(format!("{kept}/zookeeper_stats"), Some(Bytes::from_static(b"count=0,bytes=0"))),
                Request::GetData { path: format!("{kept}/zookeeper_stats"), watch: self.one_in(2) },
            ],
            3 => vec![
                Request::SetData { path: format!("{kept}/zookeeper_limits"), data: limits, version: -1 },
                Request::GetData { path: format!("{kept}/zookeeper_stats"), watch: false },
            ],
            _ => vec![
                Request::GetData { path: format!("{kept}/zookeeper_stats"), watch: false },
                Request::Delete { path: format!("{kept}/zookeeper_limits"), version: -1 },
                Request::Delete { path: format!("{kept}/zookeeper_stats"), version: -1 },
            ],
        };
        requests.into_iter().map(|request| self.sent(request)).collect()
    }
}
