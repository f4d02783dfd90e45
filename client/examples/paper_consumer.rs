//! The consumer of "Kafka: a Distributed Messaging System for Log Processing" (2011, §3): a stream of a topic's messages,
//! which never ends. This one ends after as many messages as its third argument says.
//!
//! `cargo run --example paper_consumer -- 127.0.0.1:9092 127.0.0.1:2181`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use loggos_client::{ConsumerConnector, ConsumerError, GroupConfig, OffsetReset, StreamsConfig};

fn main() -> Result<(), ConsumerError> {
    let mut arguments = std::env::args().skip(1);
    let bootstrap = arguments.next().unwrap_or_else(|| "127.0.0.1:9092".to_owned());
    let coordinator = arguments.next().unwrap_or_else(|| "127.0.0.1:2181".to_owned());
    let count = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(usize::MAX);
    let config = StreamsConfig::new(&bootstrap, &coordinator, "group1");
    let group = GroupConfig { reset: OffsetReset::Earliest, ..config.group };
    // The fetching is done by tasks of a runtime; the messages are read by this thread.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let consumer = runtime.block_on(ConsumerConnector::connect(StreamsConfig { group, ..config }))?;
    let mut streams = runtime.block_on(consumer.create_message_streams("topic1", 1))?;
    for message in streams.remove(0).into_iter().take(count) {
        let message = message?;
        println!("{}", String::from_utf8_lossy(message.payload()));
    }
    runtime.block_on(consumer.commit())?;
    runtime.block_on(consumer.close())
}
