//! Every API key that is advertised is called in each of its versions, as decision D13 asks: an answer comes, it
//! decodes in that version, and says what it should.

use loggos_protocol::kafka::messages::*;

use crate::process::{Server, loggos_ok};
use crate::wire::{Client, batch, name, text};

fn topic_id(client: &mut Client, topic: &str) -> [u8; 16] {
    let asked = metadata_request::MetadataRequestTopic::default().with_name(Some(name(topic)));
    let answer = client.call(12, &MetadataRequest::default().with_topics(Some(vec![asked])));
    *answer.topics[0].topic_id.as_bytes()
}

fn records(client: &mut Client, id: [u8; 16]) {
    let id = loggos_protocol::ids::TopicId::from_bytes(id).raw();
    client.sweep::<ProduceRequest>(
        |version| {
            let data =
                produce_request::PartitionProduceData::default().with_records(Some(batch().to_bytes()));
            let mut topic = produce_request::TopicProduceData::default().with_partition_data(vec![data]);
            if version >= 13 {
                topic.topic_id = id
            } else {
                topic.name = name("swept")
            }
            ProduceRequest::default()
                .with_transactional_id(None)
                .with_acks(-1)
                .with_timeout_ms(9000)
                .with_topic_data(vec![topic])
        },
        |version, answer| {
            let partition = &answer.responses[0].partition_responses[0];
            assert_eq!(partition.error_code, 0, "Produce {version}");
            assert_eq!(partition.base_offset, i64::from(version - 3), "Produce {version}");
        },
    );
    client.sweep::<FetchRequest>(
        |version| {
            let partition = fetch_request::FetchPartition::default().with_partition_max_bytes(1 << 20);
            let mut topic = fetch_request::FetchTopic::default().with_partitions(vec![partition]);
            if version >= 13 {
                topic.topic_id = id
            } else {
                topic.topic = name("swept")
            }
            let mut request =
                FetchRequest::default().with_max_wait_ms(10).with_min_bytes(1).with_topics(vec![topic]);
            if version >= 7 {
                request.session_epoch = -1;
            }
            request
        },
        |version, answer| {
            let partition = &answer.responses[0].partitions[0];
            assert_eq!((partition.error_code, partition.high_watermark), (0, 11), "Fetch {version}");
            assert!(partition.records.as_ref().is_some_and(|records| records.len() > 600), "Fetch {version}");
        },
    );
    client.sweep::<ListOffsetsRequest>(
        |_| {
            let partition = list_offsets_request::ListOffsetsPartition::default().with_timestamp(-1);
            let topic = list_offsets_request::ListOffsetsTopic::default()
                .with_name(name("swept"))
                .with_partitions(vec![partition]);
            ListOffsetsRequest::default().with_replica_id((-1).into()).with_topics(vec![topic])
        },
        |version, answer| {
            let partition = &answer.topics[0].partitions[0];
            assert_eq!((partition.error_code, partition.offset), (0, 11), "ListOffsets {version}");
        },
    );
    client.sweep::<OffsetForLeaderEpochRequest>(
        |_| {
            let partition = offset_for_leader_epoch_request::OffsetForLeaderPartition::default();
            let topic = offset_for_leader_epoch_request::OffsetForLeaderTopic::default()
                .with_topic(name("swept"))
                .with_partitions(vec![partition.with_current_leader_epoch(-1)]);
            let mut request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
            request.replica_id = (-1).into();
            request
        },
        |version, answer| {
            let partition = &answer.topics[0].partitions[0];
            assert_eq!(
                (partition.error_code, partition.end_offset),
                (0, 11),
                "OffsetForLeaderEpoch {version}"
            );
        },
    );
    client.sweep::<DeleteRecordsRequest>(
        |_| {
            let partition = delete_records_request::DeleteRecordsPartition::default().with_offset(2);
            let topic = delete_records_request::DeleteRecordsTopic::default()
                .with_name(name("swept"))
                .with_partitions(vec![partition]);
            DeleteRecordsRequest::default().with_timeout_ms(9000).with_topics(vec![topic])
        },
        |version, answer| {
            let partition = &answer.topics[0].partitions[0];
            assert_eq!((partition.error_code, partition.low_watermark), (0, 2), "DeleteRecords {version}");
        },
    );
}

fn topics(client: &mut Client) {
    client.sweep::<MetadataRequest>(
        |version| MetadataRequest::default().with_topics(if version == 0 { Some(vec![]) } else { None }),
        |version, answer| {
            assert_eq!(answer.brokers.len(), 1, "Metadata {version}");
            assert_eq!(answer.topics.len(), usize::from(version > 0), "Metadata {version}");
        },
    );
    client.sweep::<CreateTopicsRequest>(
        |version| {
            let topic = create_topics_request::CreatableTopic::default()
                .with_name(name(&format!("made-{version}")))
                .with_num_partitions(2)
                .with_replication_factor(1);
            CreateTopicsRequest::default().with_timeout_ms(9000).with_topics(vec![topic])
        },
        |version, answer| assert_eq!(answer.topics[0].error_code, 0, "CreateTopics {version}"),
    );
    client.sweep::<CreatePartitionsRequest>(
        |version| {
            let topic = create_partitions_request::CreatePartitionsTopic::default()
                .with_name(name(&format!("made-{}", version + 2)))
                .with_count(3)
                .with_assignments(None);
            CreatePartitionsRequest::default().with_timeout_ms(9000).with_topics(vec![topic])
        },
        |version, answer| assert_eq!(answer.results[0].error_code, 0, "CreatePartitions {version}"),
    );
    client.sweep::<DeleteTopicsRequest>(
        |version| {
            let topic = name(&format!("made-{}", version + 1));
            let request = DeleteTopicsRequest::default().with_timeout_ms(9000);
            if version >= 6 {
                let state = delete_topics_request::DeleteTopicState::default().with_name(Some(topic));
                request.with_topics(vec![state])
            } else {
                request.with_topic_names(vec![topic])
            }
        },
        |version, answer| {
            let expected = if version == 1 { -1..0 } else { 0..1 };
            let code = answer.responses[0].error_code;
            assert!(version == 1 || expected.contains(&code), "DeleteTopics {version}: {code}");
        },
    );
}

fn configs(client: &mut Client) {
    client.sweep::<DescribeConfigsRequest>(
        |_| {
            let resource = describe_configs_request::DescribeConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text("swept"))
                .with_configuration_keys(None);
            DescribeConfigsRequest::default().with_resources(vec![resource]).with_include_synonyms(true)
        },
        |version, answer| {
            assert_eq!(answer.results[0].error_code, 0, "DescribeConfigs {version}");
            assert!(answer.results[0].configs.len() > 20);
        },
    );
    client.sweep::<AlterConfigsRequest>(
        |_| {
            let config = alter_configs_request::AlterableConfig::default()
                .with_name(text("retention.ms"))
                .with_value(Some(text("100000000")));
            let resource = alter_configs_request::AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text("swept"))
                .with_configs(vec![config]);
            AlterConfigsRequest::default().with_resources(vec![resource])
        },
        |version, answer| assert_eq!(answer.responses[0].error_code, 0, "AlterConfigs {version}"),
    );
    client.sweep::<IncrementalAlterConfigsRequest>(
        |_| {
            let config = incremental_alter_configs_request::AlterableConfig::default()
                .with_name(text("retention.ms"))
                .with_config_operation(0)
                .with_value(Some(text("200000000")));
            let resource = incremental_alter_configs_request::AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text("swept"))
                .with_configs(vec![config]);
            IncrementalAlterConfigsRequest::default().with_resources(vec![resource])
        },
        |version, answer| assert_eq!(answer.responses[0].error_code, 0, "IncrementalAlterConfigs {version}"),
    );
}

fn cluster(client: &mut Client) {
    client.sweep::<ApiVersionsRequest>(
        |version| {
            let request = ApiVersionsRequest::default();
            if version < 3 {
                return request;
            }
            request.with_client_software_name(text("test")).with_client_software_version(text("1"))
        },
        |version, answer| assert_eq!(answer.error_code, 0, "ApiVersions {version}"),
    );
    client.sweep::<DescribeClusterRequest>(
        |_| DescribeClusterRequest::default(),
        |version, answer| {
            assert_eq!((answer.error_code, answer.brokers.len()), (0, 1), "DescribeCluster {version}")
        },
    );
    client.sweep::<DescribeLogDirsRequest>(
        |_| DescribeLogDirsRequest::default().with_topics(None),
        |version, answer| {
            assert_eq!(answer.results[0].error_code, 0, "DescribeLogDirs {version}");
            assert!(!answer.results[0].topics.is_empty());
        },
    );
    client.sweep::<FindCoordinatorRequest>(
        |version| {
            let request = FindCoordinatorRequest::default();
            if version >= 4 {
                request.with_coordinator_keys(vec![text("g")])
            } else {
                request.with_key(text("g"))
            }
        },
        |version, answer| {
            let code = if version >= 4 { answer.coordinators[0].error_code } else { answer.error_code };
            assert_eq!(code, 0, "FindCoordinator {version}");
        },
    );
    client.sweep::<InitProducerIdRequest>(
        |version| {
            let request = InitProducerIdRequest::default().with_transactional_id(None);
            if version >= 3 { request.with_producer_id((-1).into()).with_producer_epoch(-1) } else { request }
        },
        |version, answer| {
            assert_eq!((answer.error_code, answer.producer_epoch), (0, 0), "InitProducerId {version}");
        },
    );
}

/// What a version of JoinGroup says to a newcomer: the id to come again with, or that it is in.
fn groups(client: &mut Client, id: [u8; 16]) {
    let topic_id = loggos_protocol::ids::TopicId::from_bytes(id).raw();
    let group = |name: &str| GroupId(text(name));
    client.sweep::<JoinGroupRequest>(
        |version| {
            let protocol = join_group_request::JoinGroupRequestProtocol::default()
                .with_name(text("range"))
                .with_metadata(vec![0, 0, 0, 0, 0, 0].into());
            let request = JoinGroupRequest::default()
                .with_group_id(group(&format!("joined-{version}")))
                .with_session_timeout_ms(6000)
                .with_protocol_type(text("consumer"))
                .with_protocols(vec![protocol]);
            if version >= 1 { request.with_rebalance_timeout_ms(6000) } else { request }
        },
        |version, answer| {
            let expected = if version >= 4 { 79 } else { 0 };
            assert_eq!(answer.error_code, expected, "JoinGroup {version}");
            assert!(!answer.member_id.is_empty(), "JoinGroup {version}");
        },
    );
    let unknown =
        |code: i16, what: &str, version: i16| assert_eq!(code, 25, "{what} {version}: an unknown member");
    client.sweep::<SyncGroupRequest>(
        |_| {
            SyncGroupRequest::default()
                .with_group_id(group("none"))
                .with_generation_id(1)
                .with_member_id(text("nobody"))
        },
        |version, answer| unknown(answer.error_code, "SyncGroup", version),
    );
    client.sweep::<HeartbeatRequest>(
        |_| {
            HeartbeatRequest::default()
                .with_group_id(group("none"))
                .with_generation_id(1)
                .with_member_id(text("nobody"))
        },
        |version, answer| unknown(answer.error_code, "Heartbeat", version),
    );
    client.sweep::<LeaveGroupRequest>(
        |version| {
            let request = LeaveGroupRequest::default().with_group_id(group("none"));
            if version < 3 {
                return request.with_member_id(text("nobody"));
            }
            let member = leave_group_request::MemberIdentity::default().with_member_id(text("nobody"));
            request.with_members(vec![member])
        },
        |version, answer| {
            let code = if version < 3 { answer.error_code } else { answer.members[0].error_code };
            unknown(code, "LeaveGroup", version);
        },
    );
    client.sweep::<OffsetCommitRequest>(
        |version| {
            let partition = offset_commit_request::OffsetCommitRequestPartition::default()
                .with_committed_offset(i64::from(version))
                .with_committed_metadata(Some(text("note")));
            let mut topic =
                offset_commit_request::OffsetCommitRequestTopic::default().with_partitions(vec![partition]);
            if version >= 10 {
                topic.topic_id = topic_id
            } else {
                topic.name = name("swept")
            }
            OffsetCommitRequest::default()
                .with_group_id(group("lone"))
                .with_generation_id_or_member_epoch(-1)
                .with_topics(vec![topic])
        },
        |version, answer| assert_eq!(answer.topics[0].partitions[0].error_code, 0, "OffsetCommit {version}"),
    );
    client.sweep::<OffsetFetchRequest>(
        |version| {
            if version < 8 {
                let topic = offset_fetch_request::OffsetFetchRequestTopic::default()
                    .with_name(name("swept"))
                    .with_partition_indexes(vec![0]);
                return OffsetFetchRequest::default()
                    .with_group_id(group("lone"))
                    .with_topics(Some(vec![topic]));
            }
            let mut topic =
                offset_fetch_request::OffsetFetchRequestTopics::default().with_partition_indexes(vec![0]);
            if version >= 10 {
                topic.topic_id = topic_id
            } else {
                topic.name = name("swept")
            }
            let asked = offset_fetch_request::OffsetFetchRequestGroup::default()
                .with_group_id(group("lone"))
                .with_topics(Some(vec![topic]));
            OffsetFetchRequest::default().with_groups(vec![asked])
        },
        |version, answer| {
            let offset = if version < 8 {
                answer.topics[0].partitions[0].committed_offset
            } else {
                answer.groups[0].topics[0].partitions[0].committed_offset
            };
            assert_eq!(offset, 9, "OffsetFetch {version}: what the last version committed");
        },
    );
    client.sweep::<ListGroupsRequest>(
        |_| ListGroupsRequest::default(),
        |version, answer| {
            assert_eq!(answer.error_code, 0, "ListGroups {version}");
            assert!(
                answer.groups.iter().any(|listed| listed.group_id.0.as_str() == "lone"),
                "ListGroups {version}"
            );
        },
    );
    client.sweep::<DescribeGroupsRequest>(
        |_| DescribeGroupsRequest::default().with_groups(vec![group("joined-0"), group("unheard-of")]),
        |version, answer| {
            assert_eq!(answer.groups[0].error_code, 0, "DescribeGroups {version}");
            assert_eq!(answer.groups[1].group_state.as_str(), "Dead", "DescribeGroups {version}");
            let code = if version >= 6 { 69 } else { 0 };
            assert_eq!(answer.groups[1].error_code, code, "DescribeGroups {version}");
        },
    );
    client.sweep::<ConsumerGroupHeartbeatRequest>(
        |version| {
            ConsumerGroupHeartbeatRequest::default()
                .with_group_id(group("assigned"))
                .with_member_id(text(if version == 0 { "" } else { "me" }))
                .with_instance_id(None)
                .with_rack_id(None)
                .with_rebalance_timeout_ms(9000)
                .with_subscribed_topic_names(Some(vec![name("swept")]))
                .with_subscribed_topic_regex(None)
                .with_server_assignor(None)
                .with_topic_partitions(Some(Vec::new()))
        },
        |version, answer| {
            assert_eq!(answer.error_code, 0, "ConsumerGroupHeartbeat {version}: {:?}", answer.error_message);
            assert_eq!(answer.member_epoch, i32::from(version) + 1, "ConsumerGroupHeartbeat {version}");
            let given = answer.assignment.expect("an assignment").topic_partitions;
            // The first member gives its partition up when it hears of the second.
            assert_eq!(given.len(), usize::from(version == 0), "ConsumerGroupHeartbeat {version}");
        },
    );
    client.sweep::<ConsumerGroupDescribeRequest>(
        |_| {
            let groups = vec![group("assigned"), group("lone"), group("unheard-of")];
            ConsumerGroupDescribeRequest::default().with_group_ids(groups)
        },
        |version, answer| {
            let known = &answer.groups[0];
            assert_eq!((known.error_code, known.group_epoch), (0, 2), "ConsumerGroupDescribe {version}");
            assert_eq!((known.assignor_name.as_str(), known.members.len()), ("uniform", 2));
            assert_eq!((answer.groups[1].error_code, answer.groups[2].error_code), (69, 69));
        },
    );
    client.sweep::<OffsetDeleteRequest>(
        |_| {
            let partition = offset_delete_request::OffsetDeleteRequestPartition::default();
            let topic = offset_delete_request::OffsetDeleteRequestTopic::default()
                .with_name(name("swept"))
                .with_partitions(vec![partition]);
            OffsetDeleteRequest::default().with_group_id(group("lone")).with_topics(vec![topic])
        },
        |version, answer| {
            assert_eq!(answer.error_code, 0, "OffsetDelete {version}");
            assert_eq!(answer.topics[0].partitions[0].error_code, 0, "OffsetDelete {version}");
        },
    );
    client.sweep::<DeleteGroupsRequest>(
        |_| DeleteGroupsRequest::default().with_groups_names(vec![group("lone"), group("unheard-of")]),
        |version, answer| {
            let expected = if version == 0 { 0 } else { 69 };
            assert_eq!(answer.results[0].error_code, expected, "DeleteGroups {version}");
            assert_eq!(answer.results[1].error_code, 69, "DeleteGroups {version}: there is none");
        },
    );
}

/// Elections and reassignments on the one broker that there is.
fn moves(client: &mut Client) {
    let broker = client.call(1, &DescribeClusterRequest::default()).brokers[0].broker_id;
    client.sweep::<ElectLeadersRequest>(
        |_| {
            let asked = elect_leaders_request::TopicPartitions::default()
                .with_topic(name("swept"))
                .with_partitions(vec![0, 99]);
            ElectLeadersRequest::default().with_topic_partitions(Some(vec![asked]))
        },
        |version, answer| {
            let partitions = &answer.replica_election_results[0].partition_result;
            assert_eq!(partitions[0].error_code, 84, "ElectLeaders {version}: not needed");
            assert_eq!(partitions[1].error_code, 3, "ElectLeaders {version}: there is none");
        },
    );
    client.sweep::<AlterPartitionReassignmentsRequest>(
        |_| {
            let moved = |index: i32, replicas| {
                alter_partition_reassignments_request::ReassignablePartition::default()
                    .with_partition_index(index)
                    .with_replicas(replicas)
            };
            let topic = alter_partition_reassignments_request::ReassignableTopic::default()
                .with_name(name("swept"))
                .with_partitions(vec![
                    moved(0, Some(vec![broker])),
                    moved(7, Some(vec![broker])),
                    moved(8, None),
                ]);
            AlterPartitionReassignmentsRequest::default().with_timeout_ms(9000).with_topics(vec![topic])
        },
        |version, answer| {
            let codes: Vec<i16> =
                answer.responses[0].partitions.iter().map(|partition| partition.error_code).collect();
            assert_eq!(codes, [0, 3, 3], "AlterPartitionReassignments {version}");
        },
    );
    client.sweep::<ListPartitionReassignmentsRequest>(
        |_| ListPartitionReassignmentsRequest::default().with_timeout_ms(9000).with_topics(None),
        |version, answer| {
            assert_eq!(answer.error_code, 0, "ListPartitionReassignments {version}");
            assert!(answer.topics.is_empty(), "ListPartitionReassignments {version}: nothing moves");
        },
    );
}

#[test]
fn every_advertised_version_is_answered() {
    let server = Server::start(&[]);
    loggos_ok(&["topic", "create", "swept", "--partitions", "1", "--bootstrap", &server.bootstrap()]);
    let mut client = Client::connect(&server);
    let advertised = client.call(
        3,
        &ApiVersionsRequest::default()
            .with_client_software_name(text("t"))
            .with_client_software_version(text("1")),
    );
    let id = topic_id(&mut client, "swept");
    topics(&mut client);
    records(&mut client, id);
    groups(&mut client, id);
    configs(&mut client);
    cluster(&mut client);
    moves(&mut client);
    let advertised: std::collections::BTreeSet<i16> =
        advertised.api_keys.iter().map(|key| key.api_key).collect();
    assert_eq!(advertised, client.called, "what is advertised is what is called here");
}
