//! A client that says exactly what a test wants, for what no well-behaved client says.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use bytes::Bytes;
use loggos_protocol::batch::{Batch, BatchBuilder, BatchOptions, RecordView};
use loggos_protocol::ids::Timestamp;
use loggos_protocol::kafka::{KafkaRequest, StrBytes, api, decode_response, encode_request, messages};

use crate::process::{DEADLINE, Server};

/// A connection on which requests are made one at a time.
pub struct Client {
    socket: TcpStream,
    correlation_id: i32,
    /// The keys that were called.
    pub called: BTreeSet<i16>,
}

impl Client {
    /// Connects to a broker.
    pub fn connect(server: &Server) -> Self {
        let socket = TcpStream::connect(server.addresses().kafka).expect("the broker answers");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        Self { socket, correlation_id: 0, called: BTreeSet::new() }
    }

    /// Makes a request and takes its answer.
    pub fn call<T: KafkaRequest>(&mut self, version: i16, body: &T) -> T::Response {
        self.correlation_id += 1;
        let frame = encode_request(version, self.correlation_id, Some("versions"), body)
            .unwrap_or_else(|error| panic!("key {} version {version}: {error}", T::KEY));
        self.socket.write_all(&frame).expect("sent");
        let mut length = [0; 4];
        self.socket
            .read_exact(&mut length)
            .unwrap_or_else(|error| panic!("key {} version {version} was not answered: {error}", T::KEY));
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        self.socket.read_exact(&mut answer).expect("a whole answer");
        let (id, response) = decode_response::<T>(Bytes::from(answer), version)
            .unwrap_or_else(|error| panic!("key {} version {version}: {error}", T::KEY));
        assert_eq!(id, self.correlation_id);
        self.called.insert(T::KEY);
        response
    }

    /// Calls `T` in each of its versions.
    pub fn sweep<T: KafkaRequest>(&mut self, body: impl Fn(i16) -> T, check: impl Fn(i16, T::Response)) {
        let versions = api::find(T::KEY).expect("known").versions;
        for version in versions.min..=versions.max {
            let response = self.call(version, &body(version));
            check(version, response);
        }
    }
}

impl Client {
    /// A heartbeat of somebody unknown.
    pub fn heartbeat(&mut self, group: &str) -> messages::HeartbeatResponse {
        let request = messages::HeartbeatRequest::default()
            .with_group_id(messages::GroupId(text(group)))
            .with_generation_id(1)
            .with_member_id(text("nobody"));
        self.call(4, &request)
    }

    /// Commits offset 5 of partitions of `shared`, as a consumer without a group does; the code of each.
    pub fn commit(&mut self, group: &str, partitions: &[i32]) -> Vec<i16> {
        let partitions = partitions.iter().map(|id| {
            messages::offset_commit_request::OffsetCommitRequestPartition::default()
                .with_partition_index(*id)
                .with_committed_offset(5)
        });
        let topic = messages::offset_commit_request::OffsetCommitRequestTopic::default()
            .with_name(name("shared"))
            .with_partitions(partitions.collect());
        let request = messages::OffsetCommitRequest::default()
            .with_group_id(messages::GroupId(text(group)))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]);
        let answer = self.call(8, &request);
        answer.topics[0].partitions.iter().map(|partition| partition.error_code).collect()
    }
}

/// A topic's name.
pub fn name(text: &str) -> messages::TopicName {
    messages::TopicName(StrBytes::from_string(text.to_owned()))
}

/// A text.
pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A batch of one record of now.
pub fn batch() -> Batch {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let timestamp = Timestamp::new(now.as_millis() as i64);
    builder.push(&RecordView { key: None, value: Some(b"value"), headers: &[], timestamp });
    builder.build()
}
