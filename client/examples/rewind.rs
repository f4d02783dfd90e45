//! Rewind and replay: after an error in what consumes, the same messages again, from the beginning.
//!
//! `cargo run --example rewind -- 127.0.0.1:9092 127.0.0.1:2181 2`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use futures::StreamExt;
use loggos_client::{ConsumerConnector, ConsumerError, GroupConfig, OffsetReset, OffsetSpec, StreamsConfig};

#[tokio::main]
async fn main() -> Result<(), ConsumerError> {
    let mut arguments = std::env::args().skip(1);
    let bootstrap = arguments.next().unwrap_or_else(|| "127.0.0.1:9092".to_owned());
    let coordinator = arguments.next().unwrap_or_else(|| "127.0.0.1:2181".to_owned());
    let count = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(2);
    let config = StreamsConfig::new(&bootstrap, &coordinator, "replay");
    let group = GroupConfig { reset: OffsetReset::Earliest, ..config.group };
    let consumer = ConsumerConnector::connect(StreamsConfig { group, ..config }).await?;
    let mut streams = consumer.create_message_streams("topic1", 1).await?;
    for round in ["first", "again"] {
        for _ in 0..count {
            let Some(message) = streams[0].next().await else { return Err(ConsumerError::Closed) };
            println!("{round}: {}", String::from_utf8_lossy(message?.payload()));
        }
        // To a time or an offset it goes in the same way.
        consumer.rewind("topic1", OffsetSpec::Earliest).await?;
    }
    consumer.close().await
}
