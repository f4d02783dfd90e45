//! The everyday clients: a producer whose deliveries are futures, and a consumer of a group that brokers run.
//!
//! `cargo run --example everyday -- 127.0.0.1:9092`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use loggos_client::{
    ClusterConfig, ConsumerError, GroupConfig, GroupConsumer, Message, OffsetReset, Producer, ProducerConfig,
    Subscription,
};

#[tokio::main]
async fn main() -> Result<(), ConsumerError> {
    let bootstrap = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9092".to_owned());
    let cluster = ClusterConfig { auto_create_topics: true, ..ClusterConfig::with_bootstrap(&bootstrap) };
    let producer = Producer::new(ProducerConfig { cluster, ..ProducerConfig::default() });
    let order = Message::of("two pairs of sandals").with_key("customer 7");
    let written = producer.send("orders", order).await?.await?;
    println!("written to partition {} at offset {}", written[0].partition, written[0].offset);
    producer.close().await?;

    let config = GroupConfig { reset: OffsetReset::Earliest, ..GroupConfig::new(&bootstrap, "shipping") };
    let mut consumer = GroupConsumer::new(config);
    consumer.subscribe(Subscription::topics(["orders"])).await?;
    let order = consumer.recv().await?;
    println!("{}", String::from_utf8_lossy(order.payload()));
    consumer.commit().await?;
    consumer.close().await
}
