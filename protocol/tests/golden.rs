//! Bytes that real clients and servers sent each other (protocol/tests/golden): ours reads each of them, and what it
//! read it writes again as the same bytes.

use std::path::PathBuf;

use bytes::{BufMut, Bytes, BytesMut};
use loggos_protocol::batch::{Compression, records, split};
use loggos_protocol::ids::{Offset, SessionId, Zxid};
use loggos_protocol::kafka::messages::*;
use loggos_protocol::kafka::{
    KafkaRequest, RequestHeader, api, decode_request, decode_response, encode_request, encode_response,
};
use loggos_protocol::zookeeper::reply::{encode_notification, encode_reply};
use loggos_protocol::zookeeper::{
    ConnectRequest, ConnectResponse, ErrorCode, EventType, Reply, Request, Stat, WatchEvent,
};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden(name: &str) -> Bytes {
    std::fs::read(folder().join(format!("{name}.bin"))).expect("a golden file").into()
}

/// The names of all golden files that begin with `prefix`.
fn names(prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .expect("a folder")
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".bin").map(str::to_owned))
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

fn framed(frame: &[u8]) -> Vec<u8> {
    let mut whole = BytesMut::new();
    whole.put_u32(frame.len() as u32);
    whole.put_slice(frame);
    whole.to_vec()
}

fn request_again<T: KafkaRequest>(name: &str) {
    let frame = golden(name);
    let request = decode_request(frame.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let body: T = request.decode().unwrap_or_else(|error| panic!("{name}: {error}"));
    let header = &request.header;
    let client_id = header.client_id.as_ref().map(|id| id.as_str());
    let again = encode_request(header.version, header.correlation_id, client_id, &body).expect("encoded");
    assert_eq!(again.to_vec(), framed(&frame), "{name}");
}

fn response_again<T: KafkaRequest>(name: &str, version: i16) {
    let frame = golden(name);
    let (correlation_id, body) =
        decode_response::<T>(frame.clone(), version).unwrap_or_else(|error| panic!("{name}: {error}"));
    let api = api::find(T::KEY).expect("known");
    let header = RequestHeader { api, version, correlation_id, client_id: None };
    let again = encode_response(&header, &body).expect("encoded");
    assert_eq!(again.to_vec(), framed(&frame), "{name}");
}

fn both<T: KafkaRequest>(name: &str, version: i16) {
    if name.ends_with("request") { request_again::<T>(name) } else { response_again::<T>(name, version) }
}

#[test]
fn kafka_s_frames_are_read_and_written_as_they_were() {
    let names = names("kafka-");
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let mut parts = name.split('-').skip(1);
        let key: i16 = parts.next().and_then(|key| key.parse().ok()).expect("a key");
        let version: i16 = parts.next().and_then(|version| version[1..].parse().ok()).expect("a version");
        match key {
            0 => both::<ProduceRequest>(&name, version),
            1 => both::<FetchRequest>(&name, version),
            2 => both::<ListOffsetsRequest>(&name, version),
            3 => both::<MetadataRequest>(&name, version),
            18 => both::<ApiVersionsRequest>(&name, version),
            19 => both::<CreateTopicsRequest>(&name, version),
            22 => both::<InitProducerIdRequest>(&name, version),
            32 => both::<DescribeConfigsRequest>(&name, version),
            other => panic!("{name}: no type for key {other}"),
        }
    }
}

#[test]
fn the_batches_of_each_codec_that_kafka_kept_are_whole_and_hold_what_was_produced() {
    let (_, answer) = decode_response::<FetchRequest>(golden("kafka-01-v11-response"), 11).expect("a fetch");
    let kept = answer.responses[0].partitions[0].records.clone().expect("records");
    let (mut codecs, mut next) = (Vec::new(), 0);
    for batch in split(kept) {
        let batch = batch.expect("a batch");
        batch.check_crc().expect("a whole batch");
        codecs.push(batch.header.compression().expect("a codec"));
        assert_eq!(batch.to_bytes().len(), batch.len());
        for record in records(&batch).expect("records") {
            let record = record.expect("a record");
            assert_eq!(record.offset, Offset::new(next));
            let expected = format!("{} golden record, golden record, golden record", next % 20 + 1);
            assert_eq!(record.value.as_deref(), Some(expected.as_bytes()));
            next += 1;
        }
    }
    assert_eq!(next, 100);
    let all =
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    assert!(all.iter().all(|codec| codecs.contains(codec)), "{codecs:?}");
}

#[test]
fn zookeeper_s_requests_are_read_and_written_as_they_were() {
    let connect = golden("zookeeper-connect-request");
    let mut again = BytesMut::new();
    ConnectRequest::decode(connect.clone()).expect("read").encode(&mut again);
    assert_eq!(again, connect);
    let mut count = 0;
    for name in names("zookeeper-op").into_iter().filter(|name| name.ends_with("request")) {
        let frame = golden(&name);
        let (header, request) =
            Request::decode(frame.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let request = request.unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut again = BytesMut::new();
        request.encode(header.xid, &mut again);
        assert_eq!(again, frame, "{name}");
        count += 1;
    }
    assert!(count > 10);
}

/// Reads a stat at the end of a reply.
fn stat_at_end(frame: &[u8]) -> Stat {
    let bytes = &frame[frame.len() - 68..];
    let long = |at: usize| i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let int = |at: usize| i32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    Stat {
        czxid: Zxid::new(long(0)),
        mzxid: Zxid::new(long(8)),
        ctime_ms: long(16),
        mtime_ms: long(24),
        version: int(32),
        cversion: int(36),
        aversion: int(40),
        ephemeral_owner: SessionId::new(long(44)),
        data_length: int(52),
        num_children: int(56),
        pzxid: Zxid::new(long(60)),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn zookeeper_s_replies_are_written_as_it_wrote_them() {
    let connect = golden("zookeeper-connect-response");
    let mut again = BytesMut::new();
    ConnectResponse::decode(connect.clone()).expect("read").encode(&mut again);
    assert_eq!(again.to_vec(), framed(&connect));
    let reply = |name: &str, body: Option<Reply>| {
        let frame = golden(name);
        let xid = i32::from_be_bytes(frame[..4].try_into().expect("four bytes"));
        let zxid = Zxid::new(i64::from_be_bytes(frame[4..12].try_into().expect("eight bytes")));
        let error = ErrorCode::new(i32::from_be_bytes(frame[12..16].try_into().expect("four bytes")));
        let mut again = BytesMut::new();
        encode_reply(&mut again, xid, zxid, body.as_ref().ok_or(error));
        assert_eq!(again.to_vec(), framed(&frame), "{name}");
    };
    reply("zookeeper-op11-response", Some(Reply::Empty));
    reply("zookeeper-op2-response", Some(Reply::Empty));
    reply("zookeeper-op2-error", None);
    reply("zookeeper-op3-error", None);
    for name in ["zookeeper-op3-response", "zookeeper-op5-response"] {
        reply(name, Some(Reply::Stat(stat_at_end(&golden(name)))));
    }
    let frame = golden("zookeeper-op4-response");
    let data = frame.slice(20..frame.len() - 68);
    reply("zookeeper-op4-response", Some(Reply::Data(Some(data), stat_at_end(&frame))));
    let frame = golden("zookeeper-op1-response");
    reply("zookeeper-op1-response", Some(Reply::Path(text(&frame[20..]))));
    let frame = golden("zookeeper-op15-response");
    let path = text(&frame[20..frame.len() - 68]);
    reply("zookeeper-op15-response", Some(Reply::PathStat(path, stat_at_end(&frame))));
    let frame = golden("zookeeper-notification");
    let mut again = BytesMut::new();
    let event = WatchEvent { event: EventType::NodeDataChanged, path: text(&frame[28..]) };
    encode_notification(&mut again, Zxid::new(-1), &event);
    assert_eq!(again.to_vec(), framed(&frame));
}
