//! The producer of "Kafka: a Distributed Messaging System for Log Processing" (2011, §3): a message in a set, sent to a
//! topic.
//!
//! `cargo run --example paper_producer -- 127.0.0.1:9092`

use loggos_client::{ClientError, ClusterConfig, Message, MessageSet, Producer, ProducerConfig};

#[tokio::main]
async fn main() -> Result<(), ClientError> {
    let bootstrap = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9092".to_owned());
    let cluster = ClusterConfig { auto_create_topics: true, ..ClusterConfig::with_bootstrap(&bootstrap) };
    let producer = Producer::new(ProducerConfig { cluster, ..ProducerConfig::default() });
    let message = Message::of("test message str");
    let set = MessageSet::new([message]);
    producer.send("topic1", set).await?.await?;
    producer.close().await
}
