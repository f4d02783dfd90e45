//! Names and ids between the message structs and ours. Called by the handlers.

use loggos_protocol::ids::{BrokerId, TopicName};
use loggos_protocol::kafka::{StrBytes, messages};

/// A topic's name from the wire.
pub(super) fn topic(name: &messages::TopicName) -> TopicName {
    TopicName::new(name.0.as_str())
}

/// A topic's name for the wire.
pub(super) fn wire_topic(name: &TopicName) -> messages::TopicName {
    messages::TopicName(text(name.as_str()))
}

/// A text for the wire.
pub(super) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A text for the wire that may be absent.
pub(super) fn optional(text: Option<String>) -> Option<StrBytes> {
    text.map(StrBytes::from_string)
}

/// A broker's id for the wire.
pub(super) fn broker(id: BrokerId) -> messages::BrokerId {
    messages::BrokerId(id.raw())
}

/// Many of them.
pub(super) fn brokers(ids: &[BrokerId]) -> Vec<messages::BrokerId> {
    ids.iter().copied().map(broker).collect()
}
