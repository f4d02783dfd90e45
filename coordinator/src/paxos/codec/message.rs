//! Envelopes as frames: version, addresses, the message's kind and fields, CRC-32 of all that.
//!
//! Called by `peer`, for both channels.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::super::ballot::{CellId, Incarnation, SlotRange};
use super::super::message::{Envelope, Heartbeat, HeartbeatAck, Message, Promise, Report};
use super::super::moment::Moment;
use super::{CodecError, Reader, VERSION, put_bytes, put_list, put_value, take_value};

/// Bytes around a message: version, cell, two addresses, the membership's slot, the checksum.
const AROUND: usize = 1 + 16 + 2 * (2 + 8) + 8 + 4;

/// Appends the frame of an envelope, without a length in front.
pub fn encode_envelope(envelope: &Envelope, out: &mut BytesMut) {
    let start = out.len();
    out.reserve(AROUND + weight(&envelope.message));
    out.put_u8(VERSION);
    out.put_u128(envelope.cell.raw());
    out.put_u16(envelope.from.raw());
    out.put_u64(envelope.from_incarnation.raw());
    out.put_u16(envelope.to.raw());
    out.put_u64(envelope.to_incarnation.raw());
    out.put_u64(envelope.config_slot.raw());
    put_message(out, &envelope.message);
    let crc = crc32fast::hash(&out[start..]);
    out.put_u32(crc);
}

/// Reads a frame.
///
/// # Errors
/// For bytes that `encode_envelope` didn't give, changed ones among them.
pub fn decode_envelope(mut frame: Bytes) -> Result<Envelope, CodecError> {
    if frame.len() < AROUND {
        return Err(CodecError::Short);
    }
    let crc = frame.split_off(frame.len() - 4);
    if crc32fast::hash(&frame).to_be_bytes() != crc[..] {
        return Err(CodecError::Checksum);
    }
    let mut reader = Reader::new(frame);
    reader.version()?;
    let envelope = Envelope {
        cell: CellId::new(reader.u128()?),
        from: reader.server()?,
        from_incarnation: Incarnation::new(reader.u64()?),
        to: reader.server()?,
        to_incarnation: Incarnation::new(reader.u64()?),
        config_slot: reader.slot()?,
        message: take_message(&mut reader)?,
    };
    reader.end(envelope)
}

/// Roughly the bytes of a message.
fn weight(message: &Message) -> usize {
    match message {
        Message::Accept { value, .. } => 64 + value.weight(),
        Message::Chosen { values, .. } => 64 + values.iter().map(|value| 8 + value.weight()).sum::<usize>(),
        Message::SnapChunk { bytes, .. } => 64 + bytes.len(),
        Message::Forward { entries } => 64 + entries.iter().map(|entry| 4 + entry.len()).sum::<usize>(),
        Message::HeartbeatAck(ack) => 64 + ack.payload.len(),
        _ => 64,
    }
}

fn put_message(out: &mut BytesMut, message: &Message) {
    match message {
        Message::Canvass { ballot, chosen_upto } => put(out, 1, &[ballot.raw(), chosen_upto.raw()]),
        Message::CanvassOk { ballot } => put(out, 2, &[ballot.raw()]),
        Message::CanvassNo { ballot, promised, chosen_upto } => {
            put(out, 3, &[ballot.raw(), promised.raw(), chosen_upto.raw()]);
        }
        Message::Prepare { ballot, from_slot, released } => {
            put(out, 4, &[ballot.raw(), from_slot.raw(), released.raw()]);
        }
        Message::Promise(promise) => put_promise(out, promise),
        Message::Accept { ballot, slot, value, chosen_upto } => {
            put(out, 6, &[ballot.raw(), slot.raw(), chosen_upto.raw()]);
            put_value(out, value);
        }
        Message::Accepted { ballot, slots } => {
            put(out, 7, &[ballot.raw()]);
            put_list(out, slots.iter(), |out, range| {
                out.put_u64(range.first.raw());
                out.put_u64(range.last.raw());
            });
        }
        Message::Reject { ballot, promised, lease_left, chosen_upto } => {
            put(out, 8, &[ballot.raw(), promised.raw(), micros(*lease_left), chosen_upto.raw()]);
        }
        Message::Heartbeat(beat) => {
            let fields = [
                beat.ballot.raw(),
                beat.chosen_upto.raw(),
                beat.round,
                beat.last_proposed.raw(),
                beat.touches,
                beat.clock.as_micros(),
            ];
            put(out, 9, &fields);
            out.put_u8(beat.released.into());
        }
        Message::HeartbeatAck(ack) => {
            let fields =
                [ack.ballot.raw(), ack.round, ack.applied_upto.raw(), ack.touches, ack.clock.as_micros()];
            put(out, 10, &fields);
            put_bytes(out, &ack.payload);
        }
        Message::FetchChosen { from } => put(out, 11, &[from.raw()]),
        Message::Chosen { first, values, chosen_upto } => {
            put(out, 12, &[first.raw(), chosen_upto.raw()]);
            put_list(out, values.iter(), put_value);
        }
        Message::SnapOffer { slot, bytes } => put(out, 13, &[slot.raw(), *bytes]),
        Message::SnapFetch { slot, offset } => put(out, 14, &[slot.raw(), *offset]),
        Message::SnapChunk { slot, offset, total, bytes } => {
            put(out, 15, &[slot.raw(), *offset, *total]);
            put_bytes(out, bytes);
        }
        Message::Forward { entries } => {
            out.put_u8(16);
            put_list(out, entries.iter(), |out, entry| put_bytes(out, entry));
        }
        Message::ReadIndex { id } => put(out, 17, &[*id]),
        Message::ReadIndexOk { id, slot } => put(out, 18, &[*id, slot.raw()]),
        Message::ReadIndexNo { id } => put(out, 19, &[*id]),
        Message::TransferNow { ballot } => put(out, 20, &[ballot.raw()]),
    }
}

/// A kind and its fields of eight bytes.
fn put(out: &mut BytesMut, kind: u8, fields: &[u64]) {
    out.put_u8(kind);
    fields.iter().for_each(|field| out.put_u64(*field));
}

fn put_promise(out: &mut BytesMut, promise: &Promise) {
    let Promise { ballot, from_slot, chosen_upto, items, certain_below, answer, part, parts } = promise;
    put(out, 5, &[ballot.raw(), from_slot.raw(), chosen_upto.raw(), certain_below.raw(), *answer]);
    out.put_u32(*part);
    out.put_u32(*parts);
    put_list(out, items.iter(), |out, (slot, report)| {
        out.put_u64(slot.raw());
        match report {
            Report::Accepted { ballot, value } => {
                out.put_u8(1);
                out.put_u64(ballot.raw());
                put_value(out, value);
            }
            Report::Chosen { value } => {
                out.put_u8(2);
                put_value(out, value);
            }
        }
    });
}

fn take_message(reader: &mut Reader) -> Result<Message, CodecError> {
    Ok(match reader.u8()? {
        1 => Message::Canvass { ballot: reader.ballot()?, chosen_upto: reader.slot()? },
        2 => Message::CanvassOk { ballot: reader.ballot()? },
        3 => Message::CanvassNo {
            ballot: reader.ballot()?,
            promised: reader.ballot()?,
            chosen_upto: reader.slot()?,
        },
        4 => Message::Prepare {
            ballot: reader.ballot()?,
            from_slot: reader.slot()?,
            released: reader.ballot()?,
        },
        5 => Message::Promise(take_promise(reader)?),
        6 => {
            let (ballot, slot, chosen_upto) = (reader.ballot()?, reader.slot()?, reader.slot()?);
            Message::Accept { ballot, slot, value: take_value(reader)?, chosen_upto }
        }
        7 => Message::Accepted {
            ballot: reader.ballot()?,
            slots: reader
                .list(usize::MAX, |reader| Ok(SlotRange { first: reader.slot()?, last: reader.slot()? }))?,
        },
        8 => Message::Reject {
            ballot: reader.ballot()?,
            promised: reader.ballot()?,
            lease_left: Duration::from_micros(reader.u64()?),
            chosen_upto: reader.slot()?,
        },
        9 => Message::Heartbeat(Heartbeat {
            ballot: reader.ballot()?,
            chosen_upto: reader.slot()?,
            round: reader.u64()?,
            last_proposed: reader.slot()?,
            touches: reader.u64()?,
            clock: Moment::from_micros(reader.u64()?),
            released: reader.flag()?,
        }),
        10 => Message::HeartbeatAck(HeartbeatAck {
            ballot: reader.ballot()?,
            round: reader.u64()?,
            applied_upto: reader.slot()?,
            touches: reader.u64()?,
            clock: Moment::from_micros(reader.u64()?),
            payload: reader.bytes()?,
        }),
        11 => Message::FetchChosen { from: reader.slot()? },
        12 => {
            let (first, chosen_upto) = (reader.slot()?, reader.slot()?);
            Message::Chosen { first, values: reader.list(usize::MAX, take_value)?, chosen_upto }
        }
        13 => Message::SnapOffer { slot: reader.slot()?, bytes: reader.u64()? },
        14 => Message::SnapFetch { slot: reader.slot()?, offset: reader.u64()? },
        15 => Message::SnapChunk {
            slot: reader.slot()?,
            offset: reader.u64()?,
            total: reader.u64()?,
            bytes: reader.bytes()?,
        },
        16 => Message::Forward { entries: reader.list(usize::MAX, Reader::bytes)? },
        17 => Message::ReadIndex { id: reader.u64()? },
        18 => Message::ReadIndexOk { id: reader.u64()?, slot: reader.slot()? },
        19 => Message::ReadIndexNo { id: reader.u64()? },
        20 => Message::TransferNow { ballot: reader.ballot()? },
        _ => return Err(CodecError::Range("the kind of a message")),
    })
}

fn take_promise(reader: &mut Reader) -> Result<Promise, CodecError> {
    Ok(Promise {
        ballot: reader.ballot()?,
        from_slot: reader.slot()?,
        chosen_upto: reader.slot()?,
        certain_below: reader.slot()?,
        answer: reader.u64()?,
        part: reader.u32()?,
        parts: reader.u32()?,
        items: reader.list(usize::MAX, |reader| {
            let slot = reader.slot()?;
            let report = match reader.u8()? {
                1 => Report::Accepted { ballot: reader.ballot()?, value: take_value(reader)? },
                2 => Report::Chosen { value: take_value(reader)? },
                _ => return Err(CodecError::Range("the kind of a report")),
            };
            Ok((slot, report))
        })?,
    })
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::super::ballot::{ServerId, Slot};
    use super::super::strategies::{ballot, bytes, slot, value};
    use super::*;
    use proptest::prelude::*;

    fn moment() -> impl Strategy<Value = Moment> {
        any::<u64>().prop_map(Moment::from_micros)
    }

    fn report() -> impl Strategy<Value = Report> {
        prop_oneof![
            (ballot(), value()).prop_map(|(ballot, value)| Report::Accepted { ballot, value }),
            value().prop_map(|value| Report::Chosen { value }),
        ]
    }

    fn promise() -> impl Strategy<Value = Message> {
        let items = prop::collection::vec((slot(), report()), 0..4);
        (ballot(), slot(), slot(), items, slot(), any::<(u64, u32, u32)>()).prop_map(
            |(ballot, from_slot, chosen_upto, items, certain_below, (answer, part, parts))| {
                Message::Promise(Promise {
                    ballot,
                    from_slot,
                    chosen_upto,
                    items,
                    certain_below,
                    answer,
                    part,
                    parts,
                })
            },
        )
    }

    fn heartbeat() -> impl Strategy<Value = Message> {
        (ballot(), slot(), any::<(u64, u64, bool)>(), slot(), moment()).prop_map(
            |(ballot, chosen_upto, (round, touches, released), last_proposed, clock)| {
                Message::Heartbeat(Heartbeat {
                    ballot,
                    chosen_upto,
                    round,
                    last_proposed,
                    touches,
                    released,
                    clock,
                })
            },
        )
    }

    fn acknowledgement() -> impl Strategy<Value = Message> {
        (ballot(), any::<(u64, u64)>(), slot(), bytes(), moment()).prop_map(
            |(ballot, (round, touches), applied_upto, payload, clock)| {
                Message::HeartbeatAck(HeartbeatAck { ballot, round, applied_upto, touches, payload, clock })
            },
        )
    }

    fn values() -> impl Strategy<Value = Vec<super::super::Value>> {
        prop::collection::vec(value(), 0..4)
    }

    fn message() -> impl Strategy<Value = Message> {
        let range = (slot(), slot()).prop_map(|(first, last)| SlotRange { first, last });
        let lease = any::<u32>().prop_map(|micros| Duration::from_micros(micros.into()));
        prop_oneof![
            (ballot(), slot()).prop_map(|(ballot, chosen_upto)| Message::Canvass { ballot, chosen_upto }),
            ballot().prop_map(|ballot| Message::CanvassOk { ballot }),
            (ballot(), ballot(), slot()).prop_map(|(ballot, promised, chosen_upto)| {
                Message::CanvassNo { ballot, promised, chosen_upto }
            }),
            (ballot(), slot(), ballot()).prop_map(|(ballot, from_slot, released)| Message::Prepare {
                ballot,
                from_slot,
                released
            }),
            promise(),
            (ballot(), slot(), value(), slot()).prop_map(|(ballot, slot, value, chosen_upto)| {
                Message::Accept { ballot, slot, value, chosen_upto }
            }),
            (ballot(), prop::collection::vec(range, 0..4))
                .prop_map(|(ballot, slots)| Message::Accepted { ballot, slots }),
            (ballot(), ballot(), lease, slot()).prop_map(|(ballot, promised, lease_left, chosen_upto)| {
                Message::Reject { ballot, promised, lease_left, chosen_upto }
            }),
            heartbeat(),
            acknowledgement(),
            slot().prop_map(|from| Message::FetchChosen { from }),
            (slot(), values(), slot()).prop_map(|(first, values, chosen_upto)| Message::Chosen {
                first,
                values,
                chosen_upto
            }),
            (slot(), any::<u64>()).prop_map(|(slot, bytes)| Message::SnapOffer { slot, bytes }),
            (slot(), any::<u64>()).prop_map(|(slot, offset)| Message::SnapFetch { slot, offset }),
            (slot(), any::<(u64, u64)>(), bytes()).prop_map(|(slot, (offset, total), bytes)| {
                Message::SnapChunk { slot, offset, total, bytes }
            }),
            prop::collection::vec(bytes(), 0..4).prop_map(|entries| Message::Forward { entries }),
            any::<u64>().prop_map(|id| Message::ReadIndex { id }),
            (any::<u64>(), slot()).prop_map(|(id, slot)| Message::ReadIndexOk { id, slot }),
            any::<u64>().prop_map(|id| Message::ReadIndexNo { id }),
            ballot().prop_map(|ballot| Message::TransferNow { ballot }),
        ]
    }

    fn envelope() -> impl Strategy<Value = Envelope> {
        (any::<(u128, u16, u64, u16, u64, u64)>(), message()).prop_map(|(fields, message)| {
            let (cell, from, from_incarnation, to, to_incarnation, config_slot) = fields;
            Envelope {
                cell: CellId::new(cell),
                from: ServerId::new(from),
                from_incarnation: Incarnation::new(from_incarnation),
                to: ServerId::new(to),
                to_incarnation: Incarnation::new(to_incarnation),
                config_slot: Slot::new(config_slot),
                message,
            }
        })
    }

    proptest! {
        #[test]
        fn envelopes_read_back(envelope in envelope()) {
            let mut out = BytesMut::new();
            encode_envelope(&envelope, &mut out);
            prop_assert_eq!(decode_envelope(out.freeze()), Ok(envelope));
        }

        #[test]
        fn one_changed_bit_is_noticed(envelope in envelope(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut out = BytesMut::new();
            encode_envelope(&envelope, &mut out);
            let at = at.index(out.len());
            out[at] ^= 1 << bit;
            prop_assert_eq!(decode_envelope(out.freeze()), Err(CodecError::Checksum));
        }

        #[test]
        fn any_body_is_read_without_harm(kind in 0..30u8, body in prop::collection::vec(any::<u8>(), 0..120)) {
            let mut frame = BytesMut::new();
            frame.put_u8(VERSION);
            frame.put_bytes(0, AROUND - 5);
            frame.put_u8(kind);
            frame.put_slice(&body);
            let crc = crc32fast::hash(&frame);
            frame.put_u32(crc);
            let _ = decode_envelope(frame.freeze());
        }
    }
}
