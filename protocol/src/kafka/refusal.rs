//! Answers to requests in versions that are not served. Most such requests end the connection, as in Kafka; two
//! have an answer that their clients wait for.
//!
//! *ApiVersions*: a client asks in its newest version and learns from the refusal, always in version 0, what to ask
//! instead (KIP-511). *Produce* below 3: advertised for the sake of old librdkafka, which then sends version 2 to
//! nobody; a client that does send it carries message formats 0 or 1 and is told that per partition (D13).
//! Called by the broker's connection when `decode_request` fails.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::api::{self, ApiKey};
use super::codec::end_frame;
use super::error_code::ErrorCode;
use crate::error::WireError;

/// More topics or partitions than this are no honest Produce of an old client.
const ENTRIES_LIMIT: i32 = 100_000;

/// The frame to answer the request in `frame` with, which `decode_request` refused with `error`; `None` when the
/// connection is to be closed instead.
pub fn refuse(frame: &Bytes, error: &WireError) -> Option<Bytes> {
    let WireError::UnsupportedVersion { key, version, correlation_id } = *error else { return None };
    if key == ApiKey::ApiVersions as i16 {
        return Some(refuse_api_versions(correlation_id));
    }
    if key == ApiKey::Produce as i16 && (0..3).contains(&version) {
        return refuse_produce(frame, version, correlation_id);
    }
    None
}

/// Version 0: the code, and the one key whose range the client needs now.
fn refuse_api_versions(correlation_id: i32) -> Bytes {
    let known = api::of(ApiKey::ApiVersions).expect("ApiVersions is in the table");
    let mut out = BytesMut::with_capacity(24);
    out.put_i32(0);
    out.put_i32(correlation_id);
    out.put_i16(ErrorCode::UNSUPPORTED_VERSION.raw());
    out.put_i32(1);
    out.put_i16(ApiKey::ApiVersions as i16);
    out.put_i16(known.versions.min);
    out.put_i16(known.versions.max);
    end_frame(out)
}

/// Versions 0 to 2, which the message structs no longer have: each partition of the request with the code.
fn refuse_produce(frame: &Bytes, version: i16, correlation_id: i32) -> Option<Bytes> {
    let mut request = frame.clone();
    request.try_advance(8)?;
    request.take_text()?;
    let acks = request.try_get_i16().ok()?;
    // Nobody waits for an answer to acks=0: what is left is to close the connection.
    if acks == 0 {
        return None;
    }
    request.try_advance(4)?;
    let mut out = BytesMut::with_capacity(64);
    out.put_i32(0);
    out.put_i32(correlation_id);
    let topics = request.take_count()?;
    out.put_i32(topics);
    for _ in 0..topics {
        let name = request.take_text()?;
        out.put_i16(name.len() as i16);
        out.put_slice(&name);
        let partitions = request.take_count()?;
        out.put_i32(partitions);
        for _ in 0..partitions {
            out.put_i32(request.try_get_i32().ok()?);
            out.put_i16(ErrorCode::UNSUPPORTED_VERSION.raw());
            out.put_i64(-1);
            if version >= 2 {
                out.put_i64(-1);
            }
            let length = request.try_get_i32().ok()?;
            request.try_advance(usize::try_from(length).unwrap_or(0))?;
        }
    }
    if version >= 1 {
        out.put_i32(0);
    }
    Some(end_frame(out))
}

/// The few reads that an old Produce needs; `None` when the bytes run out.
trait OldFields {
    fn try_advance(&mut self, count: usize) -> Option<()>;
    fn take_text(&mut self) -> Option<Bytes>;
    fn take_count(&mut self) -> Option<i32>;
}

impl OldFields for Bytes {
    fn try_advance(&mut self, count: usize) -> Option<()> {
        (self.len() >= count).then(|| self.advance(count))
    }

    fn take_text(&mut self) -> Option<Bytes> {
        // -1 is null: no client id.
        let length = usize::try_from(self.try_get_i16().ok()?).unwrap_or(0);
        (self.len() >= length).then(|| self.split_to(length))
    }

    fn take_count(&mut self) -> Option<i32> {
        let count = self.try_get_i32().ok()?;
        (0..=ENTRIES_LIMIT).contains(&count).then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::codec::{decode_request, decode_response};
    use crate::kafka::messages::ApiVersionsRequest;

    #[test]
    fn an_unknown_version_of_api_versions_is_answered_in_version_0() {
        let frame = Bytes::from_static(&[0, 18, 0, 99, 0, 0, 0, 7, 0, 0]);
        let error = decode_request(frame.clone()).expect_err("there is no version 99");
        let mut answer = refuse(&frame, &error).expect("ApiVersions is always answered");
        answer.advance(4);
        let (correlation_id, response) =
            decode_response::<ApiVersionsRequest>(answer, 4).expect("a client in version 4 understands");
        assert_eq!((correlation_id, response.error_code), (7, 35));
        assert_eq!(response.api_keys[0].max_version, 4);
    }

    #[test]
    fn an_old_produce_is_told_partition_by_partition() {
        let mut frame = vec![0, 0, 0, 2, 0, 0, 0, 9, 0, 1, b'c', 0, 1, 0, 0, 0, 100];
        frame.extend([0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 3, 1, 2, 3]);
        let frame = Bytes::from(frame);
        let error = decode_request(frame.clone()).expect_err("version 2 is not served");
        let answer = refuse(&frame, &error).expect("told");
        let mut expected =
            vec![0, 0, 0, 41, 0, 0, 0, 9, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 5, 0, 35];
        expected.extend([0xff; 16]);
        expected.extend([0; 4]);
        assert_eq!(answer.to_vec(), expected);
        for cut in 8..frame.len() {
            assert_eq!(refuse(&frame.slice(..cut), &error), None);
        }
    }

    #[test]
    fn everything_else_closes_the_connection() {
        let frame = Bytes::from_static(&[0, 1, 0, 99, 0, 0, 0, 7]);
        let error = decode_request(frame.clone()).expect_err("there is no Fetch 99");
        assert_eq!(refuse(&frame, &error), None);
        assert_eq!(refuse(&frame, &WireError::UnknownKey { key: 4 }), None);
    }
}
