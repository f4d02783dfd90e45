//! Kafka's wire: messages, versions, error codes. The only place that names the crate `kafka_protocol`.
//!
//! | file | what it knows |
//! |---|---|
//! | `api` | the table API key → versions, and which of them are flexible |
//! | `codec` | frames to requests and back: headers and bodies |
//! | [`consumer_protocol`] | subscriptions and assignments inside JoinGroup and SyncGroup |
//! | `refusal` | answers to requests in versions that are not served |
//! | `guard` | lengths that an attacker sends, told from lengths that are true, before memory is spent |
//! | [`fetch_response`] | a fetch's answer around slices of files |
//! | `error_code` | every code, its name, whether a retry can help |
//!
//! A request's way: `frame` → [`decode_request`] → [`Request::body`] for the type that the key names →
//! [`encode_response`]. Messages are [`messages`]' structs, one module per message. Called by the broker's server
//! and api, and by the client's connection.

pub mod api;
mod codec;
pub mod consumer_protocol;
pub mod error_code;
pub mod fetch_response;
mod guard;
mod refusal;

pub use api::{Api, ApiKey, VersionRange};
pub use codec::{
    KafkaRequest, Request, RequestHeader, correlation_id, decode_body, decode_request, decode_response,
    encode_body, encode_request, encode_response,
};
pub use error_code::ErrorCode;
pub use kafka_protocol::messages;
pub use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Message, StrBytes};
pub use refusal::refuse;
