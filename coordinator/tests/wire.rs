//! What clients see of the protocol itself: the handshake, the order of replies, nulls, refusals, four-letter words.

mod support;

use bytes::Bytes;
use loggos_coordinator::{Coordinator, CoordinatorOptions};
use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::code::{XID_AUTH, XID_PING, XID_SET_WATCHES, op};
use loggos_protocol::zookeeper::request::{Create, SetWatches};
use loggos_protocol::zookeeper::{Acl, ConnectRequest, ConnectResponse, ErrorCode, EventType, Request};
use support::raw::{Raw, connect_request};
use support::{Server, within};

fn create(path: String, data: Option<Bytes>) -> Request {
    Request::Create(Create { op: op::CREATE, path, data, acl: Acl::open(), flags: 0, ttl_ms: None })
}

#[tokio::test]
async fn null_data_stays_null_and_a_multi_sets_what_it_made() {
    let server = Server::start().await;
    let (mut raw, _) = Raw::open(server.address()).await;
    let path = server.folder().to_owned();
    // As Kafka's brokers register: both in one, and the epoch is the czxid.
    let multi = Request::Multi(vec![
        create(path.clone(), None),
        Request::SetData { path: path.clone(), data: Some(Bytes::new()), version: 0 },
        Request::SetData { path: path.clone(), data: None, version: 1 },
    ]);
    raw.send(&[(1, multi), (2, Request::GetData { path: path.clone(), watch: false })]).await;
    let (header, _) = raw.reply().await;
    assert_eq!((header.xid, header.error), (1, ErrorCode::OK));
    let (read, mut body) = raw.reply().await;
    assert_eq!((read.xid, read.error, read.zxid), (2, ErrorCode::OK, header.zxid));
    assert_eq!(body.buffer(), Ok(None));
    let stat = body.stat().expect("a stat");
    assert_eq!((stat.czxid, stat.mzxid, stat.version, stat.data_length), (header.zxid, header.zxid, 2, 0));
    raw.send(&[(3, Request::Delete { path, version: -1 }), (4, Request::CloseSession)]).await;
    assert_eq!(raw.outcome().await, (3, ErrorCode::OK));
    assert_eq!(raw.outcome().await, (4, ErrorCode::OK));
    assert_eq!(raw.frame().await, None);
}

#[tokio::test]
async fn requests_that_come_before_the_session_stands_are_kept_and_auth_is_answered_in_order() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address()).await;
    raw.send_connect(&ConnectRequest { password: Bytes::new(), ..connect_request() }).await;
    let path = server.folder().to_owned();
    let auth = |scheme: &str| Request::Auth {
        kind: 0,
        scheme: scheme.to_owned(),
        auth: Bytes::from_static(b"me:secret"),
    };
    raw.send(&[
        (1, create(path.clone(), None)),
        (XID_AUTH, auth("digest")),
        (2, Request::Exists { path: path.clone(), watch: false }),
        (3, Request::Delete { path, version: 0 }),
        (XID_AUTH, auth("nonsense")),
        (4, Request::WhoAmI),
    ])
    .await;
    let response = ConnectResponse::decode(raw.frame().await.expect("an answer")).expect("a response");
    assert!(response.session.raw() > 0 && response.timeout_ms > 0, "{response:?}");
    assert_eq!(raw.outcome().await, (1, ErrorCode::OK));
    assert_eq!(raw.outcome().await, (XID_AUTH, ErrorCode::OK));
    assert_eq!(raw.outcome().await, (2, ErrorCode::OK));
    assert_eq!(raw.outcome().await, (3, ErrorCode::OK));
    // Refused credentials end the connection: what follows is not answered.
    assert_eq!(raw.outcome().await, (XID_AUTH, ErrorCode::AUTH_FAILED));
    assert_eq!(raw.frame().await, None);
}

#[tokio::test]
async fn a_session_needs_its_password_and_moves_with_it() {
    let server = Server::start().await;
    let (mut first, own) = Raw::open(server.address()).await;
    for (session, password) in [(own.session, [9; 16]), (SessionId::new(1), own.password)] {
        let mut thief = Raw::connect(server.address()).await;
        let password = Bytes::copy_from_slice(&password);
        thief.send_connect(&ConnectRequest { session, password, ..connect_request() }).await;
        let refused = ConnectResponse::decode(thief.frame().await.expect("an answer")).expect("a response");
        assert_eq!(refused, ConnectResponse::refused(Some(false)));
        assert_eq!(thief.frame().await, None);
    }
    first.send(&[(XID_PING, Request::Ping)]).await;
    assert_eq!(first.outcome().await, (XID_PING, ErrorCode::OK));

    let mut second = Raw::connect(server.address()).await;
    let password = Bytes::copy_from_slice(&own.password);
    let request = ConnectRequest { session: own.session, password, read_only: None, ..connect_request() };
    second.send_connect(&request).await;
    let moved = ConnectResponse::decode(second.frame().await.expect("an answer")).expect("a response");
    assert_eq!((moved.session, moved.password, moved.read_only), (own.session, own.password, None));
    assert_eq!(first.frame().await, None, "the old connection is cut off");
    second.send(&[(1, create(server.folder().to_owned(), None))]).await;
    assert_eq!(second.outcome().await, (1, ErrorCode::OK));
}

#[tokio::test]
async fn a_client_that_has_seen_the_future_is_not_served() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address()).await;
    raw.send_connect(&ConnectRequest { last_zxid_seen: Zxid::new(i64::MAX), ..connect_request() }).await;
    assert_eq!(raw.frame().await, None);
}

#[tokio::test]
async fn a_malformed_body_is_refused_and_an_unknown_operation_ends_the_connection() {
    let server = Server::start().await;
    let (mut raw, _) = Raw::open(server.address()).await;
    let mut cut = 5i32.to_be_bytes().to_vec();
    cut.extend(op::GET_DATA.to_be_bytes());
    cut.extend([0, 0]);
    raw.send_payload(&cut).await;
    if server.is_ours() {
        assert_eq!(raw.outcome().await, (5, ErrorCode::MARSHALLING_ERROR));
        let mut unknown = 6i32.to_be_bytes().to_vec();
        unknown.extend(999i32.to_be_bytes());
        raw.send_payload(&unknown).await;
        assert_eq!(raw.outcome().await, (6, ErrorCode::UNIMPLEMENTED));
        assert_eq!(raw.frame().await, None);
    }
}

#[tokio::test]
async fn watches_that_are_set_again_tell_what_was_missed() {
    let server = Server::start().await;
    let (mut raw, _) = Raw::open(server.address()).await;
    let folder = server.folder().to_owned();
    let path = |name: &str| format!("{folder}/{name}");
    raw.send(&[(1, create(folder.clone(), None)), (2, create(path("same"), None))]).await;
    raw.reply().await;
    let (seen, _) = raw.reply().await;
    raw.send(&[(3, create(path("changed"), None)), (4, create(path("made"), None))]).await;
    raw.reply().await;
    raw.reply().await;
    let watches = SetWatches {
        relative_zxid: seen.zxid,
        data: vec![path("gone"), path("changed"), path("same")],
        exist: vec![path("made"), path("absent")],
        child: vec![folder.clone(), path("same")],
        ..SetWatches::default()
    };
    raw.send(&[(XID_SET_WATCHES, Request::SetWatches(watches))]).await;
    for (event, name) in [
        (EventType::NodeDeleted, path("gone")),
        (EventType::NodeDataChanged, path("changed")),
        (EventType::NodeCreated, path("made")),
        (EventType::NodeChildrenChanged, folder.clone()),
    ] {
        let (header, mut body) = raw.reply().await;
        assert_eq!((header.xid, header.zxid), (-1, Zxid::new(-1)));
        assert_eq!((body.int(), body.int()), (Ok(event as i32), Ok(3)));
        assert_eq!(body.string(), Ok(name));
    }
    assert_eq!(raw.outcome().await, (XID_SET_WATCHES, ErrorCode::OK));
    // The others stand: the event precedes the reply of the change that caused it.
    raw.send(&[(5, create(path("absent"), None))]).await;
    let (header, mut body) = raw.reply().await;
    assert_eq!((header.xid, body.int()), (-1, Ok(EventType::NodeCreated as i32)));
    assert_eq!(raw.outcome().await, (5, ErrorCode::OK));
}

#[tokio::test]
async fn a_client_that_sends_far_ahead_gets_every_answer_in_order() {
    const REQUESTS: i32 = 3000;
    let server = Server::start().await;
    let (mut raw, _) = Raw::open(server.address()).await;
    let path = server.folder().to_owned();
    raw.send(&[(1, create(path.clone(), None))]).await;
    raw.reply().await;
    let requests: Vec<(i32, Request)> = (0..REQUESTS)
        .map(|number| match number % 2 {
            0 => (number, Request::SetData { path: path.clone(), data: None, version: number / 2 }),
            _ => (number, Request::Exists { path: path.clone(), watch: false }),
        })
        .collect();
    raw.send(&requests).await;
    for number in 0..REQUESTS {
        let (header, mut body) = raw.reply().await;
        assert_eq!((header.xid, header.error), (number, ErrorCode::OK));
        assert_eq!(body.stat().expect("a stat").version, number / 2 + 1);
    }
}

#[tokio::test]
async fn operators_get_their_texts() {
    let server = Server::start().await;
    let (_raw, own) = Raw::open(server.address()).await;
    for (word, part) in [
        ("ruok", "imok".to_owned()),
        ("isro", "rw".to_owned()),
        ("srvr", "Zookeeper version: 3.".to_owned()),
        ("mntr", "zk_znode_count\t".to_owned()),
        ("envi", "zookeeper.version=3.".to_owned()),
        ("conf", "maxSessionTimeout=".to_owned()),
        ("dump", format!("0x{:x}", own.session.raw())),
        ("cons", format!("sid=0x{:x}", own.session.raw())),
        ("wchs", "Total watches:0".to_owned()),
    ] {
        let mut raw = Raw::connect(server.address()).await;
        raw.send_bytes(word.as_bytes()).await;
        let text = raw.text().await;
        let allowed = !text.contains("not in the whitelist");
        assert!(text.contains(&part) || !allowed, "{word}: {text}");
    }
}

#[tokio::test]
async fn what_can_t_start_says_which_option_is_wrong() {
    let dir = tempfile::tempdir().expect("a folder");
    let free = "127.0.0.1:0".parse().expect("an address");
    let options = CoordinatorOptions {
        data_dir: dir.path().to_owned(),
        client_listen: free,
        peer_listen: free,
        ..CoordinatorOptions::default()
    };
    let handle = within(Coordinator::start(options.clone())).await.expect("starts");
    let taken = CoordinatorOptions { client_listen: handle.client_addr(), ..options.clone() };
    let error = within(Coordinator::start(taken)).await.expect_err("the port is taken").to_string();
    let address = handle.client_addr();
    let sentence =
        format!("--coordinator-listen: {address} is in use; stop what listens there, or give another port");
    assert_eq!(error, sentence);
    within(handle.shutdown()).await;
    let servers = vec!["a:1".to_owned(), "b:1".to_owned()];
    let refused = within(Coordinator::start(CoordinatorOptions { servers, ..options })).await;
    assert!(refused.expect_err("no ensemble yet").to_string().starts_with("--servers: "));
}

#[tokio::test]
async fn frames_that_can_t_be_end_their_connection_and_no_other() {
    let server = Server::start().await;
    let (mut other, _) = Raw::open(server.address()).await;
    for length in [-1i32, i32::MIN, 1_048_576, i32::MAX] {
        let (mut raw, _) = Raw::open(server.address()).await;
        raw.send_bytes(&length.to_be_bytes()).await;
        assert_eq!(raw.frame().await, None, "{length}");
        // Nor may a handshake be so long.
        let mut raw = Raw::connect(server.address()).await;
        raw.send_bytes(&length.to_be_bytes()).await;
        assert_eq!(raw.frame().await, None, "{length}");
    }
    other.send(&[(XID_PING, Request::Ping)]).await;
    assert_eq!(other.outcome().await, (XID_PING, ErrorCode::OK));
}

#[tokio::test]
async fn one_address_gets_so_many_connections_and_they_come_back() {
    let server = Server::start_of_our_own(|options| options.connections_per_address = 2).await;
    let (one, _) = Raw::open(server.address()).await;
    let (_two, _) = Raw::open(server.address()).await;
    let mut third = Raw::connect(server.address()).await;
    third.send_connect(&connect_request()).await;
    assert_eq!(third.frame().await, None, "turned away");
    drop(one);
    // The server learns of the end by itself.
    let again = async {
        loop {
            let mut raw = Raw::connect(server.address()).await;
            raw.send_connect(&connect_request()).await;
            if raw.frame().await.is_some() {
                break;
            }
        }
    };
    within(again).await;
}

#[tokio::test]
async fn a_session_says_how_long_its_nodes_shall_linger_and_sees_its_own_wish() {
    let server = Server::start_of_our_own(|_| {}).await;
    let (mut one, _) = Raw::open(server.address()).await;
    let (mut two, _) = Raw::open(server.address()).await;
    let path = || "/zookeeper/loggos/linger".to_owned();
    let wish = |text: &'static str| Request::SetData {
        path: path(),
        data: Some(Bytes::from_static(text.as_bytes())),
        version: -1,
    };
    one.send(&[(1, wish("700")), (2, wish("never")), (3, Request::GetData { path: path(), watch: false })])
        .await;
    assert_eq!(one.outcome().await, (1, ErrorCode::OK));
    assert_eq!(one.outcome().await, (2, ErrorCode::BAD_ARGUMENTS));
    let (_, mut body) = one.reply().await;
    assert_eq!(body.buffer(), Ok(Some(Bytes::from_static(b"700"))));
    two.send(&[(1, Request::GetData { path: path(), watch: false })]).await;
    assert_eq!(two.reply().await.1.buffer(), Ok(Some(Bytes::from_static(b"0"))));
    two.send(&[(2, Request::GetChildren { path: "/zookeeper".to_owned(), watch: false })]).await;
    let (_, mut body) = two.reply().await;
    assert_eq!(body.strings(), Ok(vec!["config".to_owned(), "quota".to_owned()]), "it stands in no list");
}

#[tokio::test]
async fn words_that_clients_compare_have_no_newline() {
    let server = Server::start_of_our_own(|_| {}).await;
    for (word, answer) in [("ruok", "imok"), ("isro", "rw")] {
        let mut raw = Raw::connect(server.address()).await;
        raw.send_bytes(word.as_bytes()).await;
        assert_eq!(raw.text().await, answer);
    }
}
