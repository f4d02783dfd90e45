//! What ZooKeeper's clients rely on, asked by one of them. With `LOGGOS_ZOOKEEPER=host:port` the same tests ask
//! that server instead.

mod support;

use std::time::Duration;

use support::{EPHEMERAL, OPEN, Server, within};
use zookeeper_client::{
    Acl, Acls, AddWatchMode, AuthId, AuthUser, Client, CreateMode, Error, EventType, MultiReadResult,
    MultiWriteError, MultiWriteResult, Permission,
};

const SEQUENTIAL: zookeeper_client::CreateOptions<'static> =
    CreateMode::PersistentSequential.with_acls(Acls::anyone_all());

#[tokio::test]
async fn nodes_are_made_read_changed_and_removed() {
    let server = Server::start().await;
    let client = server.client().await;
    let (made, _) = client.create("/a", b"one", &OPEN).await.expect("created");
    assert_eq!(client.create("/a", b"", &OPEN).await.expect_err("it is there"), Error::NodeExists);
    assert_eq!(client.create("/b/c", b"", &OPEN).await.expect_err("no parent"), Error::NoNode);

    let (data, stat) = client.get_data("/a").await.expect("read");
    assert_eq!((data.as_slice(), stat), (&b"one"[..], made));
    assert_eq!((stat.version, stat.cversion, stat.data_length, stat.ephemeral_owner), (0, 0, 3, 0));
    assert_eq!(stat.czxid, stat.mzxid);

    let changed = client.set_data("/a", b"three", Some(0)).await.expect("version 0 it was");
    assert_eq!((changed.version, changed.czxid, changed.data_length), (1, made.czxid, 5));
    assert!(changed.mzxid > made.mzxid);
    assert_eq!(client.set_data("/a", b"", Some(0)).await.expect_err("version 1 it is"), Error::BadVersion);

    for name in ["/a/y", "/a/x"] {
        client.create(name, b"", &OPEN).await.expect("created");
    }
    let (mut names, stat) = client.get_children("/a").await.expect("listed");
    names.sort();
    assert_eq!((names, stat.num_children, stat.cversion), (vec!["x".to_owned(), "y".to_owned()], 2, 2));
    assert_eq!(client.count_descendants_number("/a").await, Ok(2));
    assert_eq!(client.delete("/a", None).await, Err(Error::NotEmpty));
    client.delete("/a/x", Some(0)).await.expect("removed");
    client.delete("/a/y", None).await.expect("removed");
    assert_eq!(client.check_stat("/a").await.expect("there").map(|stat| stat.cversion), Some(4));
    assert_eq!(client.delete("/a", Some(7)).await, Err(Error::BadVersion));
    client.delete("/a", Some(1)).await.expect("removed");
    assert_eq!(client.check_stat("/a").await, Ok(None));
    assert_eq!(client.get_data("/a").await.expect_err("removed"), Error::NoNode);
    client.sync("/").await.expect("a barrier");
}

#[tokio::test]
async fn ephemerals_go_with_their_session_and_have_no_children() {
    let server = Server::start().await;
    let watching = server.client().await;
    let owner = server.client().await;
    let (stat, _) = owner.create("/e", b"", &EPHEMERAL).await.expect("created");
    assert_eq!(stat.ephemeral_owner, owner.session_id().0);
    assert_eq!(
        owner.create("/e/child", b"", &OPEN).await.expect_err("it is ephemeral"),
        Error::NoChildrenForEphemerals
    );
    assert_eq!(owner.list_ephemerals("/").await, Ok(vec!["/e".to_owned()]));
    let (_, gone) = watching.check_and_watch_stat("/e").await.expect("there");
    drop(owner);
    let event = within(gone.changed()).await;
    assert_eq!((event.event_type, event.path.as_str()), (EventType::NodeDeleted, "/e"));
    assert_eq!(watching.check_stat("/e").await, Ok(None));
}

#[tokio::test]
async fn a_silent_session_expires_and_takes_its_ephemerals_along() {
    let server = Server::start().await;
    let watching = server.client().await;
    let connector = Client::connector().with_detached().with_session_timeout(Duration::from_millis(700));
    let silent = within(connector.connect(server.address())).await.expect("connects");
    let path = format!("{}/e", server.folder());
    silent.create(&path, b"", &EPHEMERAL).await.expect("created");
    let (_, gone) = watching.check_and_watch_stat("/e").await.expect("there");
    let session = silent.into_session();
    // The connection is gone, the session isn't told to end: it ends by silence.
    assert_eq!(within(gone.changed()).await.event_type, EventType::NodeDeleted);
    let again = within(Client::connector().with_session(session).connect(server.address())).await;
    assert_eq!(again.expect_err("no more"), Error::SessionExpired);
}

#[tokio::test]
async fn a_session_is_taken_up_again_by_another_connection() {
    let server = Server::start().await;
    let watching = server.client().await;
    let first =
        within(Client::connector().with_detached().connect(server.address())).await.expect("connects");
    let path = format!("{}/e", server.folder());
    first.create(&path, b"", &EPHEMERAL).await.expect("created");
    let id = first.session_id();
    let session = first.into_session();
    let again = within(Client::connector().with_session(session).connect(server.address())).await;
    let again = again.expect("the session lives");
    assert_eq!(again.session_id(), id);
    let stat = watching.check_stat("/e").await.expect("answered").expect("its ephemeral lives too");
    assert_eq!(stat.ephemeral_owner, id.0);
    again.delete(&path, None).await.expect("it is writable again");
}

#[tokio::test]
async fn sequential_names_count_up_whatever_was_removed() {
    let server = Server::start().await;
    let client = server.client().await;
    let (_, first) = client.create("/n-", b"", &SEQUENTIAL).await.expect("created");
    client.delete(&format!("/n-{first}"), None).await.expect("removed");
    let (_, second) = client.create("/other-", b"", &SEQUENTIAL).await.expect("created");
    assert_eq!((first.into_i64(), second.into_i64()), (0, 1));
    assert_eq!(client.list_children("/").await, Ok(vec!["other-0000000001".to_owned()]));
}

#[tokio::test]
async fn one_shot_watches_tell_once_and_before_the_change_is_read() {
    let server = Server::start().await;
    let (client, other) = (server.client().await, server.client().await);
    let (none, created) = client.check_and_watch_stat("/w").await.expect("answered");
    assert_eq!(none, None);
    let (_, _, children) = client.get_and_watch_children("/").await.expect("listed");
    let (made, _) = other.create("/w", b"", &OPEN).await.expect("created");
    let event = within(created.changed()).await;
    assert_eq!((event.event_type, event.path.as_str()), (EventType::NodeCreated, "/w"));
    assert_eq!(event.zxid, made.czxid);
    assert_eq!(within(children.changed()).await.event_type, EventType::NodeChildrenChanged);

    let (_, _, data) = client.get_and_watch_data("/w").await.expect("read");
    let (_, _, child) = client.get_and_watch_children("/w").await.expect("listed");
    other.set_data("/w", b"1", None).await.expect("changed");
    assert_eq!(within(data.changed()).await.event_type, EventType::NodeDataChanged);
    other.delete("/w", None).await.expect("removed");
    assert_eq!(within(child.changed()).await.event_type, EventType::NodeDeleted);
}

#[tokio::test]
async fn persistent_watches_tell_of_everything_below() {
    let server = Server::start().await;
    let (client, other) = (server.client().await, server.client().await);
    client.create("/p", b"", &OPEN).await.expect("created");
    let mut node = client.watch("/p", AddWatchMode::Persistent).await.expect("set");
    let mut tree = client.watch("/p", AddWatchMode::PersistentRecursive).await.expect("set");
    other.create("/p/q", b"", &OPEN).await.expect("created");
    other.create("/p/q/r", b"", &OPEN).await.expect("created");
    other.set_data("/p/q/r", b"x", None).await.expect("changed");
    other.delete("/p/q/r", None).await.expect("removed");
    other.set_data("/p", b"x", None).await.expect("changed");
    for (kind, path) in [
        (EventType::NodeCreated, "/p/q"),
        (EventType::NodeCreated, "/p/q/r"),
        (EventType::NodeDataChanged, "/p/q/r"),
        (EventType::NodeDeleted, "/p/q/r"),
        (EventType::NodeDataChanged, "/p"),
    ] {
        let event = within(tree.changed()).await;
        assert_eq!((event.event_type, event.path.as_str()), (kind, path));
    }
    assert_eq!(within(node.changed()).await.event_type, EventType::NodeChildrenChanged);
    assert_eq!(within(node.changed()).await.event_type, EventType::NodeDataChanged);
}

#[tokio::test]
async fn a_multi_happens_as_a_whole_or_not_at_all() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create("/epoch", b"", &OPEN).await.expect("created");
    let mut writer = client.new_multi_writer();
    writer.add_check_version("/epoch", 0).expect("a path");
    writer.add_create("/m", b"1", &OPEN).expect("a path");
    writer.add_set_data("/m", b"two", Some(0)).expect("a path");
    writer.add_create("/m/n", b"", &OPEN).expect("a path");
    writer.add_delete("/m/n", Some(0)).expect("a path");
    let results = writer.commit().await.expect("all of it");
    assert_eq!(results.len(), 5);
    let MultiWriteResult::SetData { stat } = results[2] else { panic!("{results:?}") };
    assert_eq!((stat.version, stat.data_length), (1, 3));
    assert_eq!(stat.czxid, stat.mzxid, "one zxid for all parts");
    let MultiWriteResult::Create { path, .. } = &results[1] else { panic!("{results:?}") };
    assert_eq!(path, "/m");

    client.set_data("/epoch", b"", None).await.expect("changed");
    let mut writer = client.new_multi_writer();
    writer.add_create("/never", b"", &OPEN).expect("a path");
    writer.add_check_version("/epoch", 0).expect("a path");
    writer.add_delete("/m", None).expect("a path");
    let refused = writer.commit().await.expect_err("the version is 1");
    assert_eq!(refused, MultiWriteError::OperationFailed { index: 1, source: Error::BadVersion });
    assert_eq!(client.check_stat("/never").await, Ok(None));
    assert!(client.check_stat("/m").await.expect("answered").is_some());

    let mut reader = client.new_multi_reader();
    reader.add_get_data("/m").expect("a path");
    reader.add_get_data("/never").expect("a path");
    reader.add_get_children("/m").expect("a path");
    let results = reader.commit().await.expect("each part for itself");
    assert!(matches!(&results[0], MultiReadResult::Data { data, .. } if data == b"two"), "{results:?}");
    assert!(matches!(&results[1], MultiReadResult::Error { err: Error::NoNode }), "{results:?}");
    assert!(matches!(&results[2], MultiReadResult::Children { children } if children.is_empty()));
}

#[tokio::test]
async fn an_acl_keeps_others_out() {
    let server = Server::start().await;
    let (owner, other) = (server.client().await, server.client().await);
    owner.auth("digest", b"me:secret").await.expect("a digest proves itself");
    let mine = CreateMode::Persistent.with_acls(Acls::creator_all());
    owner.create("/mine", b"x", &mine).await.expect("created");
    assert_eq!(other.get_data("/mine").await.expect_err("not theirs"), Error::NoAuth);
    assert_eq!(other.set_data("/mine", b"", None).await.expect_err("not theirs"), Error::NoAuth);
    assert_eq!(
        other.create("/theirs", b"", &mine).await.expect_err("nobody has authenticated"),
        Error::InvalidAcl
    );
    let users = owner.list_auth_users().await.expect("listed");
    assert!(users.contains(&AuthUser::new("digest", "me")), "{users:?}");

    let (acl, stat) = owner.get_acl("/mine").await.expect("read");
    assert_eq!((acl.len(), acl[0].scheme(), stat.aversion), (1, "digest", 0));
    let readable = [
        Acl::new(Permission::READ, AuthId::anyone()),
        Acl::new(Permission::ALL, AuthId::new("digest", acl[0].id())),
    ];
    let stat = owner.set_acl("/mine", &readable, Some(0)).await.expect("changed");
    assert_eq!(stat.aversion, 1);
    assert_eq!(other.get_data("/mine").await.expect("readable now").0, b"x");
    assert_eq!(other.set_data("/mine", b"", None).await.expect_err("not writable"), Error::NoAuth);
    other.auth("digest", b"me:secret").await.expect("a digest proves itself");
    other.set_data("/mine", b"", None).await.expect("theirs too now");
}

#[tokio::test]
async fn requests_of_one_client_are_answered_in_their_order() {
    let server = Server::start().await;
    let client = server.client().await;
    // All are sent before the first is answered: each read sees the writes before it and none behind it.
    let made = client.create("/o", b"0", &OPEN);
    let one = client.get_data("/o");
    let set = client.set_data("/o", b"1", Some(0));
    let two = client.get_data("/o");
    let gone = client.delete("/o", Some(1));
    let three = client.check_stat("/o");
    let (made, one, set, two, gone, three) =
        within(async { tokio::join!(made, one, set, two, gone, three) }).await;
    made.expect("created");
    assert_eq!(one.expect("read").0, b"0");
    set.expect("changed");
    assert_eq!(two.expect("read").0, b"1");
    gone.expect("removed");
    assert_eq!(three, Ok(None));
}

#[tokio::test]
async fn a_restart_keeps_data_and_sessions_and_clients_come_back_by_themselves() {
    let server = Server::start().await;
    if !server.is_ours() {
        return;
    }
    let client = server.client().await;
    client.create("/kept", b"1", &OPEN).await.expect("created");
    client.set_data("/kept", b"2", None).await.expect("changed");
    let (ephemeral, _) = client.create("/kept/e", b"", &EPHEMERAL).await.expect("created");
    let (_, _, unchanged) = client.get_and_watch_data("/kept").await.expect("read");
    let mut server = server;
    for round in 0..3 {
        server = server.restart().await;
        let kept = within(async {
            loop {
                match client.get_data("/kept").await {
                    Ok(kept) => break kept,
                    // What was under way when the connection broke is for the client to repeat.
                    Err(Error::ConnectionLoss) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await;
        assert_eq!((kept.0.as_slice(), kept.1.version), (&b"2"[..], 1), "round {round}");
        let stat = client.check_stat("/kept/e").await.expect("answered").expect("the session lives");
        assert_eq!((stat.czxid, stat.ephemeral_owner), (ephemeral.czxid, client.session_id().0));
    }
    // The watch was set again by the client, and fires on the first change since.
    client.set_data("/kept", b"3", None).await.expect("changed");
    assert_eq!(within(unchanged.changed()).await.event_type, EventType::NodeDataChanged);
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_crash() {
    let server = Server::start().await;
    if !server.is_ours() {
        return;
    }
    let client = server.client().await;
    let made = futures::future::join_all((0..300).map(|number| {
        let path = format!("/n{number}");
        let client = client.clone();
        async move { client.create(&path, b"x", &OPEN).await }
    }));
    for made in within(made).await {
        made.expect("created");
    }
    client.create("/e", b"", &EPHEMERAL).await.expect("created");
    client.delete("/n7", None).await.expect("removed");
    let copy = server.crashed_copy().await;
    let other = copy.client().await;
    let names = other.list_children("/").await.expect("listed");
    assert_eq!(names.len(), 300);
    assert!(!names.contains(&"n7".to_owned()) && names.contains(&"e".to_owned()));
    let stat = other.check_stat("/n299").await.expect("answered").expect("it is there");
    assert_eq!(Some(stat), client.check_stat("/n299").await.expect("answered"));
}
