//! Batches, topics and offsets that are wrong, each answered with the protocol's own code; and what is right goes on
//! being taken.

use bytes::Bytes;
use loggos_protocol::batch::{Attributes, Batch};
use loggos_protocol::ids::{ProducerEpoch, ProducerId, Sequence};
use loggos_protocol::kafka::ErrorCode;
use loggos_protocol::kafka::messages::{
    FetchRequest, ProduceRequest, TransactionalId, fetch_request, produce_request,
};

use crate::process::{Server, loggos_ok};
use crate::wire::{Client, batch, name, text};

const VERSION: i16 = 9;

fn produce(client: &mut Client, topic: &str, records: Bytes) -> ErrorCode {
    let data = produce_request::PartitionProduceData::default().with_records(Some(records));
    let topic =
        produce_request::TopicProduceData::default().with_name(name(topic)).with_partition_data(vec![data]);
    let request = ProduceRequest::default()
        .with_transactional_id(None)
        .with_acks(-1)
        .with_timeout_ms(9000)
        .with_topic_data(vec![topic]);
    let answer = client.call(VERSION, &request);
    ErrorCode::new(answer.responses[0].partition_responses[0].error_code)
}

fn changed(change: impl FnOnce(&mut Batch)) -> Bytes {
    let mut batch = batch();
    change(&mut batch);
    batch.seal();
    batch.to_bytes()
}

fn numbered(id: i64, epoch: i16, sequence: i32) -> Bytes {
    changed(|batch| {
        batch.header.producer_id = ProducerId::new(id);
        batch.header.producer_epoch = ProducerEpoch::new(epoch);
        batch.header.base_sequence = Sequence::new(sequence);
    })
}

#[test]
fn each_wrong_batch_gets_its_own_code_and_right_ones_go_on() {
    let server = Server::start(&["--set", "message.max.bytes=2000"]);
    loggos_ok(&["topic", "create", "t", "--partitions", "1", "--bootstrap", &server.bootstrap()]);
    let mut client = Client::connect(&server);
    let mut rotten = batch().to_bytes().to_vec();
    *rotten.last_mut().expect("bytes") ^= 1;
    let mut old = batch().to_bytes().to_vec();
    old[16] = 1;
    let whole = batch().to_bytes();
    let two = [&whole[..], &whole].concat();
    let cases: Vec<(&str, Bytes, ErrorCode)> = vec![
        ("a wrong CRC", rotten.into(), ErrorCode::CORRUPT_MESSAGE),
        ("a cut batch", whole.slice(..whole.len() - 1), ErrorCode::CORRUPT_MESSAGE),
        ("message format 1", old.into(), ErrorCode::UNSUPPORTED_FOR_MESSAGE_FORMAT),
        ("nothing", Bytes::new(), ErrorCode::INVALID_RECORD),
        ("two batches", two.into(), ErrorCode::INVALID_RECORD),
        (
            "a control batch",
            changed(|batch| batch.header.attributes = Attributes::new(0x20)),
            ErrorCode::INVALID_RECORD,
        ),
        (
            "an unknown codec",
            changed(|batch| batch.header.attributes = Attributes::new(7)),
            ErrorCode::UNSUPPORTED_COMPRESSION_TYPE,
        ),
        ("a wrong count", changed(|batch| batch.header.last_offset_delta = 5), ErrorCode::INVALID_RECORD),
        ("too large", changed(|batch| batch.payload = vec![0; 3000].into()), ErrorCode::MESSAGE_TOO_LARGE),
    ];
    for (what, records, expected) in cases {
        assert_eq!(produce(&mut client, "t", records), expected, "{what}");
    }
    assert_eq!(produce(&mut client, "nowhere", whole.clone()), ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
    assert_eq!(produce(&mut client, "t", numbered(7, 0, 0)), ErrorCode::NONE);
    assert_eq!(produce(&mut client, "t", numbered(7, 0, 0)), ErrorCode::NONE, "a repeated batch is known");
    assert_eq!(produce(&mut client, "t", numbered(7, 0, 5)), ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER);
    assert_eq!(produce(&mut client, "t", numbered(7, 1, 0)), ErrorCode::NONE);
    assert_eq!(produce(&mut client, "t", numbered(7, 0, 1)), ErrorCode::INVALID_PRODUCER_EPOCH);
    assert_eq!(produce(&mut client, "t", whole), ErrorCode::NONE, "what is right goes on being taken");
    let consume =
        ["consume", "t", "--from", "beginning", "--stop-at-end", "--bootstrap", &server.bootstrap()];
    assert_eq!(loggos_ok(&consume).lines().count(), 3, "three records were taken, each once");
}

#[test]
fn what_is_not_served_is_refused_and_offsets_outside_are_told() {
    let server = Server::start(&[]);
    loggos_ok(&["topic", "create", "t", "--partitions", "1", "--bootstrap", &server.bootstrap()]);
    let mut client = Client::connect(&server);
    let data = produce_request::PartitionProduceData::default().with_records(Some(batch().to_bytes()));
    let topic =
        produce_request::TopicProduceData::default().with_name(name("t")).with_partition_data(vec![data]);
    let request = ProduceRequest::default()
        .with_transactional_id(Some(TransactionalId(text("tx"))))
        .with_acks(-1)
        .with_topic_data(vec![topic.clone()]);
    let answer = client.call(VERSION, &request);
    let code = ErrorCode::new(answer.responses[0].partition_responses[0].error_code);
    assert_eq!(code, ErrorCode::TRANSACTIONAL_ID_AUTHORIZATION_FAILED);
    let request =
        ProduceRequest::default().with_transactional_id(None).with_acks(3).with_topic_data(vec![topic]);
    let answer = client.call(VERSION, &request);
    let code = ErrorCode::new(answer.responses[0].partition_responses[0].error_code);
    assert_eq!(code, ErrorCode::INVALID_REQUIRED_ACKS);
    for offset in [-1, 1, i64::MAX] {
        let partition =
            fetch_request::FetchPartition::default().with_fetch_offset(offset).with_partition_max_bytes(1000);
        let topic =
            fetch_request::FetchTopic::default().with_topic(name("t")).with_partitions(vec![partition]);
        let request =
            FetchRequest::default().with_max_wait_ms(10).with_session_epoch(-1).with_topics(vec![topic]);
        let answer = client.call(11, &request);
        let code = ErrorCode::new(answer.responses[0].partitions[0].error_code);
        assert_eq!(code, ErrorCode::OFFSET_OUT_OF_RANGE, "offset {offset}");
    }
}
