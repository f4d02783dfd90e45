//! Frames to messages and back: the header in front, the body in the version that the header names.
//!
//! The message structs' own decoder and encoder return catch-all errors; they are wrapped here, and nowhere else.
//! A whole frame, length prefix included, is what the encoders give; what the decoders take has lost its prefix
//! (`frame` has taken it off). Called by the broker's server and api, and by the client's connection.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages;
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};

use super::api::{self, Api, ApiKey};
use super::error_code::ErrorCode;
use super::guard::{GuardedBytes, REQUEST_FIELDS, RESPONSE_FIELDS, Verdict};
use crate::error::WireError;
use crate::frame::PREFIX_LEN;

/// What all requests have in common: an API key, and the type of their answer.
pub use kafka_protocol::protocol::Request as KafkaRequest;

/// Room for most answers, so that small ones take one allocation.
const RESPONSE_GUESS: usize = 256;

/// What stands in front of a request, checked against the table of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// The key and what is known of it.
    pub api: &'static Api,
    /// The version of the request and of its answer.
    pub version: i16,
    /// The client's number for the request, to be given back with the answer.
    pub correlation_id: i32,
    /// What the client calls itself.
    pub client_id: Option<StrBytes>,
}

impl RequestHeader {
    /// The key.
    pub const fn key(&self) -> ApiKey {
        self.api.key
    }
}

/// A request whose header is decoded and whose body is not.
#[derive(Clone, Debug)]
pub struct Request {
    /// The header.
    pub header: RequestHeader,
    /// The body's bytes, shared with the frame.
    pub body: Bytes,
}

impl Request {
    /// Decodes the body as a `T`, whose key must be the header's.
    ///
    /// # Errors
    /// `Malformed` or `TooManyElements`: the connection is to be closed.
    ///
    /// # Panics
    /// When `T` is another key's request: a wrong line in the caller's table.
    pub fn decode<T: KafkaRequest>(&self) -> Result<T, WireError> {
        assert_eq!(T::KEY, self.header.key() as i16, "the handler is for another API key");
        let flexible = self.header.api.is_flexible(self.header.version);
        decode_guarded(self.header.api.name, &self.body, self.header.version, flexible, REQUEST_FIELDS)
    }
}

/// Decodes the header in front of `frame`, and checks that the key is known and the version in its range.
///
/// # Errors
/// `UnknownKey`, `UnsupportedVersion` and `Malformed`. Some are to be answered: see [`refuse`](super::refuse);
/// all others close the connection.
pub fn decode_request(frame: Bytes) -> Result<Request, WireError> {
    const WHAT: &str = "a request header";
    let cut = || WireError::Malformed { what: WHAT, reason: "shorter than eight bytes".to_owned() };
    let fixed = frame.first_chunk::<8>().ok_or_else(cut)?;
    let key = i16::from_be_bytes([fixed[0], fixed[1]]);
    let version = i16::from_be_bytes([fixed[2], fixed[3]]);
    let correlation_id = i32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
    let api = api::find(key).ok_or(WireError::UnknownKey { key })?;
    if !api.versions.contains(version) {
        return Err(WireError::UnsupportedVersion { key, version, correlation_id });
    }
    let mut guarded = GuardedBytes::new(frame, false, REQUEST_FIELDS);
    let decoded = messages::RequestHeader::decode(&mut guarded, api.request_header_version(version));
    let header = decoded.map_err(|error| malformed(WHAT, &error))?;
    let body = guarded.into_rest();
    Ok(Request { header: RequestHeader { api, version, correlation_id, client_id: header.client_id }, body })
}

/// Encodes `body` as the answer to the request of `header`: a whole frame, length prefix included.
///
/// # Errors
/// `Unwritable` when `body` holds a field that this version cannot say.
pub fn encode_response<T>(header: &RequestHeader, body: &T) -> Result<Bytes, WireError>
where
    T: Encodable + HeaderVersion,
{
    let mut out = begin_response(header);
    encode_into(&mut out, header.api.name, header.version, body)?;
    Ok(end_frame(out))
}

/// A frame's beginning: room for the length, and the response header.
pub(super) fn begin_response(header: &RequestHeader) -> BytesMut {
    let mut out = BytesMut::with_capacity(RESPONSE_GUESS);
    out.put_i32(0);
    out.put_i32(header.correlation_id);
    if header.api.response_header_version(header.version) >= 1 {
        // No tagged fields.
        out.put_u8(0);
    }
    out
}

/// Sets a frame's length, now that it's known.
pub(super) fn end_frame(mut out: BytesMut) -> Bytes {
    let length = u32::try_from(out.len() - PREFIX_LEN).expect("a message of ours is shorter than 2 GiB");
    out[..PREFIX_LEN].copy_from_slice(&length.to_be_bytes());
    out.freeze()
}

/// Encodes a request in `version`: a whole frame, length prefix included.
///
/// # Errors
/// `Unwritable` when `body` holds a field that this version cannot say, `UnsupportedVersion` for a version that
/// no request of this key has.
pub fn encode_request<T: KafkaRequest>(
    version: i16,
    correlation_id: i32,
    client_id: Option<&str>,
    body: &T,
) -> Result<Bytes, WireError> {
    let api = known::<T>(version, correlation_id)?;
    let mut header = messages::RequestHeader::default()
        .with_request_api_key(T::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id);
    header.client_id = client_id.map(|id| StrBytes::from_string(id.to_owned()));
    let mut out = BytesMut::with_capacity(RESPONSE_GUESS);
    out.put_i32(0);
    encode_into(&mut out, "a request header", api.request_header_version(version), &header)?;
    encode_into(&mut out, api.name, version, body)?;
    Ok(end_frame(out))
}

/// The correlation id that a response's frame begins with, which says what request it answers.
pub fn correlation_id(frame: &[u8]) -> Option<i32> {
    frame.first_chunk::<4>().map(|raw| i32::from_be_bytes(*raw))
}

/// Decodes the answer to a request of type `T` that was sent in `version`; gives the correlation id with it.
///
/// # Errors
/// `Malformed`, `TooManyElements`, and `UnsupportedVersion` as [`encode_request`].
pub fn decode_response<T: KafkaRequest>(frame: Bytes, version: i16) -> Result<(i32, T::Response), WireError> {
    const WHAT: &str = "a response header";
    let cut = || WireError::Malformed { what: WHAT, reason: "shorter than four bytes".to_owned() };
    let correlation_id = correlation_id(&frame).ok_or_else(cut)?;
    let api = known::<T>(version, correlation_id)?;
    let mut guarded = GuardedBytes::new(frame, false, REQUEST_FIELDS);
    messages::ResponseHeader::decode(&mut guarded, api.response_header_version(version))
        .map_err(|error| malformed(WHAT, &error))?;
    let body = guarded.into_rest();
    // A broker that doesn't know our version of ApiVersions says so in version 0 (KIP-511).
    let refused =
        api.key == ApiKey::ApiVersions && error_code_in_front(&body) == Some(ErrorCode::UNSUPPORTED_VERSION);
    let version = if refused { 0 } else { version };
    let response = decode_guarded(api.name, &body, version, api.is_flexible(version), RESPONSE_FIELDS)?;
    Ok((correlation_id, response))
}

fn error_code_in_front(body: &[u8]) -> Option<ErrorCode> {
    body.first_chunk::<2>().map(|raw| ErrorCode::new(i16::from_be_bytes(*raw)))
}

fn known<T: KafkaRequest>(version: i16, correlation_id: i32) -> Result<&'static Api, WireError> {
    let api = api::find(T::KEY).ok_or(WireError::UnknownKey { key: T::KEY })?;
    if api.versions.contains(version) {
        Ok(api)
    } else {
        Err(WireError::UnsupportedVersion { key: T::KEY, version, correlation_id })
    }
}

/// Decodes a struct that stands alone, without a header: the bytes inside JoinGroup and SyncGroup, for instance.
/// `flexible` says whether this version has compact lengths.
///
/// # Errors
/// `Malformed` and `TooManyElements`.
pub fn decode_body<T: Decodable>(
    what: &'static str,
    bytes: &Bytes,
    version: i16,
    flexible: bool,
) -> Result<T, WireError> {
    decode_guarded(what, bytes, version, flexible, REQUEST_FIELDS)
}

/// Encodes a struct that stands alone, without a header.
///
/// # Errors
/// `Unwritable`.
pub fn encode_body<T: Encodable>(what: &'static str, version: i16, body: &T) -> Result<Bytes, WireError> {
    let mut out = BytesMut::new();
    encode_into(&mut out, what, version, body)?;
    Ok(out.freeze())
}

pub(super) fn encode_into<T: Encodable>(
    out: &mut BytesMut,
    what: &'static str,
    version: i16,
    body: &T,
) -> Result<(), WireError> {
    body.encode(out, version).map_err(|error| WireError::Unwritable {
        what,
        version,
        reason: error.to_string(),
    })
}

/// Bytes behind the message are ignored, as Kafka ignores them.
fn decode_guarded<T: Decodable>(
    what: &'static str,
    bytes: &Bytes,
    version: i16,
    flexible: bool,
    fields: usize,
) -> Result<T, WireError> {
    let mut guarded = GuardedBytes::new(bytes.clone(), flexible, fields);
    let decoded = T::decode(&mut guarded, version).map_err(|error| malformed(what, &error));
    match (guarded.verdict(), decoded) {
        (Verdict::Excessive, _) => Err(WireError::TooManyElements { what }),
        (Verdict::Altered, Ok(_)) => {
            T::decode(&mut bytes.clone(), version).map_err(|error| malformed(what, &error))
        }
        (_, decoded) => decoded,
    }
}

fn malformed(what: &'static str, error: &impl std::fmt::Display) -> WireError {
    WireError::Malformed { what, reason: error.to_string().trim_end().to_owned() }
}
