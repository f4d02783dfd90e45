//! Syslog messages (P): where one ends on a stream (RFC 6587), and what its header says (RFC 5424, RFC 3164).
//!
//! A record's value is the message as it came; what the header says stands in the record's headers. What isn't syslog
//! at all is shipped too, without them. Called by `sockets`.

use bytes::{Buf, Bytes, BytesMut};

/// Digits of a length in front of a message.
const LENGTH_DIGITS: usize = 9;

/// Takes the next message off a stream: counted (`LEN SP MSG`) or ended by a newline. What is longer than `limit` is
/// given in pieces.
pub fn next_message(stream: &mut BytesMut, limit: usize) -> Option<Bytes> {
    while stream.first().is_some_and(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
        stream.advance(1);
    }
    if let Some((skip, length)) = counted(stream)
        && length <= limit
    {
        if stream.len() < skip + length {
            return None;
        }
        stream.advance(skip);
        return Some(trimmed(stream.split_to(length).freeze()));
    }
    if let Some(at) = stream.iter().position(|byte| matches!(byte, b'\n' | 0)) {
        let line = stream.split_to(at).freeze();
        stream.advance(1);
        return Some(trimmed(line));
    }
    (stream.len() > limit).then(|| stream.split_to(limit).freeze())
}

/// The length in front of a counted message, and the bytes that it takes.
fn counted(stream: &[u8]) -> Option<(usize, usize)> {
    let digits = stream.iter().take(LENGTH_DIGITS + 1).take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 || digits > LENGTH_DIGITS || stream.get(digits) != Some(&b' ') {
        return None;
    }
    // A message begins with its priority; a line that happens to begin with a number does not.
    if stream.get(digits + 1).is_some_and(|byte| *byte != b'<') {
        return None;
    }
    let length = std::str::from_utf8(&stream[..digits]).ok()?.parse().ok()?;
    Some((digits + 1, length))
}

fn trimmed(mut message: Bytes) -> Bytes {
    while message.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
        message.truncate(message.len() - 1);
    }
    message
}

/// What the header of a message says, as record headers.
pub fn facts(message: &Bytes) -> Vec<(&'static str, Bytes)> {
    let mut facts = Vec::new();
    let Some((priority, at)) = priority(message) else { return facts };
    facts.push(("facility", Bytes::from((priority / 8).to_string())));
    facts.push(("severity", Bytes::from((priority % 8).to_string())));
    let rest = message.slice(at..);
    if rest.starts_with(b"1 ") {
        rfc5424(&rest.slice(2..), &mut facts);
    } else {
        rfc3164(&rest, &mut facts);
    }
    facts
}

/// `<PRI>`: its value, and where the rest begins.
fn priority(message: &[u8]) -> Option<(u8, usize)> {
    let end = message.iter().take(5).position(|byte| *byte == b'>')?;
    let digits = message.get(1..end).filter(|digits| message[0] == b'<' && !digits.is_empty())?;
    let value: u8 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (value <= 191).then_some((value, end + 1))
}

/// TIMESTAMP SP HOSTNAME SP APP-NAME SP PROCID SP MSGID SP …; `-` is nothing.
fn rfc5424(rest: &Bytes, facts: &mut Vec<(&'static str, Bytes)>) {
    let mut at = 0;
    for name in ["syslog-time", "syslog-host", "app", "procid", "msgid"] {
        let Some(length) = rest[at..].iter().position(|byte| *byte == b' ') else { return };
        let word = rest.slice(at..at + length);
        if word != "-" && !word.is_empty() {
            facts.push((name, word));
        }
        at += length + 1;
    }
}

/// `Mmm dd hh:mm:ss HOSTNAME TAG[PID]: …`; a relay may have left time or host out.
fn rfc3164(rest: &Bytes, facts: &mut Vec<(&'static str, Bytes)>) {
    const TIME: usize = "Jan  1 00:00:00".len();
    let is_time = rest.len() > TIME
        && rest[TIME] == b' '
        && rest[3] == b' '
        && rest[6] == b' '
        && rest[9] == b':'
        && rest[12] == b':';
    let mut at = 0;
    if is_time {
        facts.push(("syslog-time", rest.slice(..TIME)));
        at = TIME + 1;
    }
    let word = |at: usize| {
        let length = rest[at..].iter().position(|byte| *byte == b' ').unwrap_or(rest.len() - at);
        rest.slice(at..at + length)
    };
    let mut tag = word(at);
    // A word with a colon or a bracket is a tag already: local senders name no host.
    if is_time && !tag.contains(&b':') && !tag.contains(&b'[') && !tag.is_empty() {
        at = (at + tag.len() + 1).min(rest.len());
        facts.push(("syslog-host", tag));
        tag = word(at);
    }
    let Some(tag) = tag.strip_suffix(b":").map(|name| tag.slice_ref(name)) else { return };
    match tag.iter().position(|byte| *byte == b'[') {
        Some(bracket) if tag.ends_with(b"]") => {
            facts.push(("app", tag.slice(..bracket)));
            facts.push(("procid", tag.slice(bracket + 1..tag.len() - 1)));
        }
        _ => facts.push(("app", tag)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(message: &'static str) -> String {
        let facts = facts(&Bytes::from_static(message.as_bytes()));
        let each = facts.iter().map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value)));
        each.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn headers_of_both_formats_are_read() {
        // From RFC 5424, section 6.5, and RFC 3164, section 5.4.
        assert_eq!(
            shown("<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 [x@1 a=\"b\"] text"),
            "facility=20 severity=5 syslog-time=2003-10-11T22:14:15.003Z syslog-host=mymachine.example.com \
             app=evntslog msgid=ID47"
        );
        assert_eq!(
            shown("<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8"),
            "facility=4 severity=2 syslog-time=Oct 11 22:14:15 syslog-host=mymachine app=su"
        );
        assert_eq!(
            shown("<13>Feb  5 17:32:18 cron[42]: run"),
            "facility=1 severity=5 syslog-time=Feb  5 17:32:18 app=cron procid=42"
        );
        assert_eq!(shown("<13>no header at all"), "facility=1 severity=5");
        assert_eq!(shown("not syslog"), "");
        assert_eq!(shown("<999>x"), "");
    }

    #[test]
    fn counted_messages_and_lines_are_told_apart() {
        let mut stream = BytesMut::from(&b"8 <13>a\nbc<13>line\r\n5 apples\n9 <13>unf"[..]);
        let mut found = Vec::new();
        while let Some(message) = next_message(&mut stream, 100) {
            found.push(message);
        }
        assert_eq!(found, ["<13>a\nbc", "<13>line", "5 apples"]);
        assert_eq!(&stream[..], b"9 <13>unf");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            facts(&Bytes::from(bytes.clone()));
            let mut stream = BytesMut::from(&bytes[..]);
            let mut rounds = 0;
            while next_message(&mut stream, 16).is_some() {
                rounds += 1;
                prop_assert!(rounds <= bytes.len() + 1);
            }
        }
    }
}
