//! A broker in a test's own process: one topic, logs in memory, numbered producers, and faults on demand.
//!
//! It speaks through the protocol crate's encoders, so that both sides of a test agree only on the wire.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use loggos_protocol::batch::Batch;
use loggos_protocol::frame::FrameDecoder;
use loggos_protocol::ids::{LeaderEpoch, Offset};
use loggos_protocol::kafka::messages::api_versions_response::ApiVersion;
use loggos_protocol::kafka::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use loggos_protocol::kafka::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use loggos_protocol::kafka::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use loggos_protocol::kafka::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use loggos_protocol::kafka::messages::{
    self, ApiVersionsResponse, FetchRequest, FetchResponse, InitProducerIdResponse, ListOffsetsRequest,
    ListOffsetsResponse, MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse,
};
use loggos_protocol::kafka::{ApiKey, ErrorCode, Request, StrBytes, api, decode_request, encode_response};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The topic that there is.
pub const TOPIC: &str = "t";

/// What goes wrong, each as often as its number says.
#[derive(Default)]
pub struct Faults {
    /// A connection is cut before a Produce is carried out.
    pub cut_before_produce: AtomicUsize,
    /// A connection is cut after a Produce was carried out.
    pub cut_after_produce: AtomicUsize,
    /// A Produce is answered with NOT_LEADER_OR_FOLLOWER.
    pub not_leader: AtomicUsize,
    /// A topic is said to be unknown.
    pub unknown_topic: AtomicUsize,
}

fn strikes(fault: &AtomicUsize) -> bool {
    fault.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[derive(Default)]
struct Log {
    batches: Vec<Batch>,
    start: i64,
    end: i64,
    next_sequence: Option<i32>,
    recent: Vec<(i32, i64)>,
}

/// The broker.
pub struct Stub {
    pub address: String,
    port: i32,
    pub faults: Faults,
    logs: Mutex<BTreeMap<i32, Log>>,
    pub requests: Mutex<BTreeMap<i16, usize>>,
}

impl Stub {
    /// Listens on a free port, with `partitions` of [`TOPIC`].
    pub async fn start(partitions: i32) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stub = Arc::new(Self {
            address: address.to_string(),
            port: i32::from(address.port()),
            faults: Faults::default(),
            logs: Mutex::new((0..partitions).map(|number| (number, Log::default())).collect()),
            requests: Mutex::default(),
        });
        let accepting = Arc::clone(&stub);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&accepting).serve(socket));
            }
        });
        stub
    }

    /// Deletes records before `offset`.
    pub fn truncate_front(&self, partition: i32, offset: i64) {
        let mut logs = self.logs.lock();
        let log = logs.get_mut(&partition).expect("a partition");
        log.start = offset;
        log.batches.retain(|batch| batch.header.next_offset().raw() > offset);
    }

    async fn serve(self: Arc<Self>, mut socket: TcpStream) {
        let (decoder, mut buffer) = (FrameDecoder::default(), BytesMut::new());
        loop {
            while let Some(frame) = decoder.decode(&mut buffer).expect("frames") {
                let request = decode_request(frame).expect("a request");
                *self.requests.lock().entry(request.header.key() as i16).or_default() += 1;
                let Some(answer) = self.answer(&request) else { return };
                if !answer.is_empty() && socket.write_all(&answer).await.is_err() {
                    return;
                }
            }
            if !matches!(socket.read_buf(&mut buffer).await, Ok(1..)) {
                return;
            }
        }
    }

    /// `None` cuts the connection.
    fn answer(&self, request: &Request) -> Option<Bytes> {
        let header = &request.header;
        let encoded = match header.key() {
            ApiKey::ApiVersions => encode_response(header, &api_versions()),
            ApiKey::Metadata => encode_response(header, &self.metadata(&request.decode().expect("a body"))),
            ApiKey::InitProducerId => {
                let response = InitProducerIdResponse::default().with_producer_id(messages::ProducerId(7));
                encode_response(header, &response.with_producer_epoch(0))
            }
            ApiKey::Produce => {
                if strikes(&self.faults.cut_before_produce) {
                    return None;
                }
                let request: ProduceRequest = request.decode().expect("a body");
                let response = self.produce(&request);
                if strikes(&self.faults.cut_after_produce) {
                    return None;
                }
                if request.acks == 0 {
                    return Some(Bytes::new());
                }
                encode_response(header, &response)
            }
            ApiKey::Fetch => encode_response(header, &self.fetch(&request.decode().expect("a body"))),
            ApiKey::ListOffsets => encode_response(header, &self.offsets(&request.decode().expect("a body"))),
            other => panic!("nobody asks for {other:?}"),
        };
        Some(encoded.expect("a writable answer"))
    }

    fn metadata(&self, request: &MetadataRequest) -> MetadataResponse {
        let partition = |&number: &i32| {
            MetadataResponsePartition::default()
                .with_partition_index(number)
                .with_leader_id(messages::BrokerId(1))
                .with_leader_epoch(3)
                .with_replica_nodes(vec![messages::BrokerId(1)])
                .with_isr_nodes(vec![messages::BrokerId(1)])
        };
        let topics = request.topics.iter().flatten().map(|asked| {
            let name = asked.name.clone().expect("a name");
            let known = name.as_str() == TOPIC && !strikes(&self.faults.unknown_topic);
            let topic = MetadataResponseTopic::default().with_name(Some(name));
            if known {
                topic.with_partitions(self.logs.lock().keys().map(partition).collect())
            } else {
                topic.with_error_code(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION.raw())
            }
        });
        let broker = MetadataResponseBroker::default()
            .with_node_id(messages::BrokerId(1))
            .with_host(StrBytes::from_static_str("127.0.0.1"))
            .with_port(self.port);
        MetadataResponse::default()
            .with_brokers(vec![broker])
            .with_controller_id(messages::BrokerId(1))
            .with_topics(topics.collect())
    }

    fn produce(&self, request: &ProduceRequest) -> ProduceResponse {
        let mut logs = self.logs.lock();
        let topics = request.topic_data.iter().map(|topic| {
            let partitions = topic.partition_data.iter().map(|data| {
                let log = logs.get_mut(&data.index).expect("a partition");
                let batch = Batch::from_bytes(data.records.as_ref().expect("records")).expect("a batch");
                let outcome = if strikes(&self.faults.not_leader) {
                    Err(ErrorCode::NOT_LEADER_OR_FOLLOWER)
                } else {
                    log.append(batch)
                };
                let answer = PartitionProduceResponse::default().with_index(data.index);
                match outcome {
                    Ok(base) => answer.with_base_offset(base),
                    Err(code) => answer.with_error_code(code.raw()).with_base_offset(-1),
                }
            });
            TopicProduceResponse::default()
                .with_name(topic.name.clone())
                .with_partition_responses(partitions.collect())
        });
        ProduceResponse::default().with_responses(topics.collect())
    }

    fn fetch(&self, request: &FetchRequest) -> FetchResponse {
        let logs = self.logs.lock();
        let topics = request.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|wanted| logs[&wanted.partition].read(wanted));
            FetchableTopicResponse::default()
                .with_topic(topic.topic.clone())
                .with_partitions(partitions.collect())
        });
        FetchResponse::default().with_responses(topics.collect())
    }

    fn offsets(&self, request: &ListOffsetsRequest) -> ListOffsetsResponse {
        let logs = self.logs.lock();
        let topics = request.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|wanted| {
                let log = &logs[&wanted.partition_index];
                let offset = if wanted.timestamp == -2 { log.start } else { log.end };
                ListOffsetsPartitionResponse::default()
                    .with_partition_index(wanted.partition_index)
                    .with_offset(offset)
            });
            ListOffsetsTopicResponse::default()
                .with_name(topic.name.clone())
                .with_partitions(partitions.collect())
        });
        ListOffsetsResponse::default().with_topics(topics.collect())
    }
}

impl Log {
    fn append(&mut self, mut batch: Batch) -> Result<i64, ErrorCode> {
        batch.check_crc().map_err(|error| ErrorCode::from(&error))?;
        let sequence = batch.header.base_sequence.raw();
        if batch.header.has_producer() {
            if let Some((_, base)) = self.recent.iter().find(|(known, _)| *known == sequence) {
                return Ok(*base);
            }
            if self.next_sequence.unwrap_or(0) != sequence {
                return Err(ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER);
            }
            self.next_sequence = Some(sequence + batch.header.record_count);
            self.recent.push((sequence, self.end));
        }
        batch.header.base_offset = Offset::new(self.end);
        batch.header.leader_epoch = LeaderEpoch::new(3);
        self.end = batch.header.next_offset().raw();
        let base = batch.header.base_offset.raw();
        self.batches.push(batch);
        Ok(base)
    }

    fn read(&self, wanted: &messages::fetch_request::FetchPartition) -> PartitionData {
        let data = PartitionData::default()
            .with_partition_index(wanted.partition)
            .with_high_watermark(self.end)
            .with_log_start_offset(self.start);
        if !(self.start..=self.end).contains(&wanted.fetch_offset) {
            return data.with_error_code(ErrorCode::OFFSET_OUT_OF_RANGE.raw()).with_high_watermark(-1);
        }
        let limit = usize::try_from(wanted.partition_max_bytes).expect("a limit");
        let mut records = BytesMut::new();
        let from = self.batches.iter().filter(|batch| batch.header.next_offset().raw() > wanted.fetch_offset);
        for batch in from {
            if records.is_empty() || records.len() + batch.len() <= limit {
                records.extend_from_slice(&batch.to_bytes());
            } else {
                // As real brokers do: the limit falls where it falls.
                records.extend_from_slice(&batch.to_bytes()[..limit.saturating_sub(records.len())]);
                break;
            }
        }
        data.with_records(Some(records.freeze()))
    }
}

fn api_versions() -> ApiVersionsResponse {
    let keys = [
        ApiKey::ApiVersions,
        ApiKey::Metadata,
        ApiKey::InitProducerId,
        ApiKey::Produce,
        ApiKey::Fetch,
        ApiKey::ListOffsets,
    ];
    let range = |key: ApiKey| {
        let versions = api::of(key).expect("a known key").versions;
        ApiVersion::default()
            .with_api_key(key as i16)
            .with_min_version(versions.min)
            .with_max_version(versions.max)
    };
    ApiVersionsResponse::default().with_api_keys(keys.into_iter().map(range).collect())
}
