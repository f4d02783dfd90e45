//! Requests of groups that can't be granted, and the codes that Kafka gives.

use loggos_protocol::kafka::messages::*;

use crate::process::{Server, eventually, loggos_ok};
use crate::wire::{Client, name, text};

fn group(id: &str) -> GroupId {
    GroupId(text(id))
}

fn join(id: &str, member: &str, protocol: &str) -> JoinGroupRequest {
    let offered = join_group_request::JoinGroupRequestProtocol::default()
        .with_name(text(protocol))
        .with_metadata(vec![0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].into());
    JoinGroupRequest::default()
        .with_group_id(group(id))
        .with_member_id(text(member))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![offered])
}

/// Joins, and takes what it gives itself; its id and generation.
fn member(client: &mut Client, id: &str) -> (String, i32) {
    let first = client.call(9, &join(id, "", "range"));
    assert_eq!(first.error_code, 79, "come again with an id");
    let joined = client.call(9, &join(id, &first.member_id, "range"));
    assert_eq!((joined.error_code, &joined.leader), (0, &joined.member_id));
    let given = sync_group_request::SyncGroupRequestAssignment::default()
        .with_member_id(joined.member_id.clone())
        .with_assignment(vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0].into());
    let sync = SyncGroupRequest::default()
        .with_group_id(group(id))
        .with_member_id(joined.member_id.clone())
        .with_generation_id(joined.generation_id)
        .with_assignments(vec![given]);
    assert_eq!(client.call(5, &sync).error_code, 0);
    (joined.member_id.to_string(), joined.generation_id)
}

fn commit(client: &mut Client, id: &str, who: (&str, i32), note: &str, topic: &str) -> i16 {
    let partition = offset_commit_request::OffsetCommitRequestPartition::default()
        .with_committed_offset(1)
        .with_committed_metadata(Some(text(note)));
    let topic = offset_commit_request::OffsetCommitRequestTopic::default()
        .with_name(name(topic))
        .with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(group(id))
        .with_member_id(text(who.0))
        .with_generation_id_or_member_epoch(who.1)
        .with_topics(vec![topic]);
    client.call(9, &request).topics[0].partitions[0].error_code
}

#[test]
fn classic_groups_refuse_with_kafka_s_codes() {
    let server = Server::start(&["--set", "group.max.size=1", "--set", "offset.metadata.max.bytes=10"]);
    loggos_ok(&["topic", "create", "there", "--bootstrap", &server.bootstrap()]);
    let mut client = Client::connect(&server);
    let (id, generation) = member(&mut client, "g");
    let mut code = |request: &JoinGroupRequest| client.call(9, request).error_code;
    assert_eq!(code(&join("g", "", "range")), 81, "the group is full");
    assert_eq!(code(&join("g", "stranger", "range")), 25, "nobody of that id");
    assert_eq!(code(&join("", "", "range")), 24, "no name");
    assert_eq!(code(&join("g2", "", "range").with_session_timeout_ms(5)), 26, "too short a session");
    assert_eq!(code(&join("g2", "", "range").with_protocols(Vec::new())), 23, "no protocol");
    assert_eq!(code(&join("g", "", "another")), 23, "no protocol in common");
    let who = (id.as_str(), generation);
    assert_eq!(commit(&mut client, "g", who, "", "there"), 0);
    assert_eq!(commit(&mut client, "g", who, "01234567890", "there"), 12, "too long a note");
    assert_eq!(commit(&mut client, "g", who, "", "nowhere"), 3, "no such topic");
    assert_eq!(commit(&mut client, "g", (&id, generation - 1), "", "there"), 22, "an old generation");
    assert_eq!(commit(&mut client, "g", ("stranger", generation), "", "there"), 25, "nobody of that id");
    assert_eq!(commit(&mut client, "g", ("", -1), "", "there"), 25, "others are in it");
    assert_eq!(commit(&mut client, "none", ("stranger", 1), "", "there"), 22, "there is no such group");
    assert_eq!(client.heartbeat("g").error_code, 25);
    // Its topic goes while the group runs: the group goes on, and commits for it are refused.
    loggos_ok(&["topic", "delete", "there", "--bootstrap", &server.bootstrap()]);
    eventually("the topic is gone", || commit(&mut client, "g", who, "", "there") == 3);
    let beat = HeartbeatRequest::default()
        .with_group_id(group("g"))
        .with_generation_id(generation)
        .with_member_id(text(&id));
    assert_eq!(client.call(4, &beat).error_code, 0);
    let deleted = client.call(2, &DeleteGroupsRequest::default().with_groups_names(vec![group("g")]));
    assert_eq!(deleted.results[0].error_code, 68, "it has a member");
}

fn beat(member: &str, epoch: i32) -> ConsumerGroupHeartbeatRequest {
    ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group("c"))
        .with_member_id(text(member))
        .with_member_epoch(epoch)
        .with_instance_id(None)
        .with_rack_id(None)
        .with_rebalance_timeout_ms(if epoch == 0 { 9000 } else { -1 })
        .with_subscribed_topic_names((epoch == 0).then(|| vec![name("there")]))
        .with_subscribed_topic_regex(None)
        .with_server_assignor(None)
        .with_topic_partitions((epoch == 0).then(Vec::new))
}

#[test]
fn consumer_groups_refuse_with_kafka_s_codes() {
    let server = Server::start(&["--set", "group.consumer.max.size=1"]);
    loggos_ok(&["topic", "create", "there", "--partitions", "3", "--bootstrap", &server.bootstrap()]);
    let mut client = Client::connect(&server);
    let joined = client.call(1, &beat("me", 0));
    assert_eq!((joined.error_code, joined.member_epoch), (0, 1));
    assert_eq!(joined.assignment.expect("given").topic_partitions[0].partitions, vec![0, 1, 2]);
    let mut code = |request: ConsumerGroupHeartbeatRequest| client.call(1, &request).error_code;
    assert_eq!(code(beat("you", 0)), 81, "the group is full");
    assert_eq!(code(beat("you", 1)), 25, "nobody of that id");
    assert_eq!(code(beat("me", 7)), 110, "an epoch that never was");
    assert_eq!(code(beat("me", -5)), 42, "no epoch at all");
    assert_eq!(code(beat("", 0)), 42, "no id");
    assert_eq!(code(beat("me", 0).with_server_assignor(Some(text("best")))), 112, "no such assignor");
    assert_eq!(code(beat("me", 0).with_subscribed_topic_regex(Some(text("(")))), 128, "not an expression");
    assert_eq!(code(beat("me", 0).with_topic_partitions(None)), 42, "it doesn't say that it has nothing");
    assert_eq!(commit(&mut client, "c", ("me", 1), "", "there"), 0);
    assert_eq!(commit(&mut client, "c", ("me", 0), "", "there"), 113, "an old epoch");
    assert_eq!(commit(&mut client, "c", ("you", 1), "", "there"), 25, "nobody of that id");
    assert_eq!(client.call(1, &beat("me", -1)).member_epoch, -1, "it leaves");
    assert_eq!(commit(&mut client, "c", ("", -1), "", "there"), 0, "nobody is in it");
}
