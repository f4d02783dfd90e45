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
