//! Points in time as people type them, and places in a topic by such a point (P). Called by `consume`.

use loggos_client::OffsetSpec;
use loggos_protocol::ids::{Offset, Timestamp};

const SECONDS_PER_DAY: i64 = 86_400;

/// `beginning`, `end`, an offset, `@` and milliseconds since 1970, or RFC 3339.
pub fn place(text: &str) -> Result<OffsetSpec, String> {
    const EXPECTED: &str = "it must be beginning, end, an offset, @1700000000000 (milliseconds since 1970) or 2024-01-31T12:00:00Z";
    let refused = || EXPECTED.to_owned();
    match text {
        "beginning" => Ok(OffsetSpec::Earliest),
        "end" => Ok(OffsetSpec::Latest),
        _ => match text.strip_prefix('@') {
            Some(millis) => {
                let millis = millis.parse::<u64>().ok().and_then(|millis| i64::try_from(millis).ok());
                millis.map(|millis| OffsetSpec::At(Timestamp::new(millis))).ok_or_else(refused)
            }
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().map(|offset| OffsetSpec::Exactly(Offset::new(offset))).map_err(|_| refused())
            }
            None => rfc3339(text).filter(|at| at.raw() >= 0).map(OffsetSpec::At).ok_or_else(refused),
        },
    }
}

/// `2024-01-31T12:00:00`, with a fraction if need be, and `Z` or `+hh:mm`.
fn rfc3339(text: &str) -> Option<Timestamp> {
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let [year, month, day] = numbers::<3>(date, '-')?;
    let zone_at = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at(zone_at);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [hour, minute, second] = numbers::<3>(clock, ':')?;
    let in_range = (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60
        && (1970..=9999).contains(&year);
    if !in_range || fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let millis: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let days: i64 = (1970..year).map(|year| if leaps(year) { 366 } else { 365 }).sum::<i64>()
        + (1..month).map(|month| days_in(year, month)).sum::<i64>()
        + day
        - 1;
    let seconds = days * SECONDS_PER_DAY + hour * 3_600 + minute * 60 + second - zone_seconds(zone)?;
    Some(Timestamp::new(seconds * 1_000 + millis))
}

fn zone_seconds(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, rest) =
        if let Some(rest) = zone.strip_prefix('+') { (1, rest) } else { (-1, zone.strip_prefix('-')?) };
    let [hours, minutes] = numbers::<2>(rest, ':')?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3_600 + minutes * 60))
}

fn numbers<const N: usize>(text: &str, separator: char) -> Option<[i64; N]> {
    let is_number =
        |part: &&str| part.len() >= 2 && part.len() <= 4 && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Option<Vec<i64>> =
        text.split(separator).map(|part| Some(part).filter(is_number)?.parse().ok()).collect();
    parts?.try_into().ok()
}

const fn leaps(year: i64) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

const fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if leaps(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_typed() {
        let at = |millis| Ok(OffsetSpec::At(Timestamp::new(millis)));
        assert_eq!(place("beginning"), Ok(OffsetSpec::Earliest));
        assert_eq!(place("end"), Ok(OffsetSpec::Latest));
        assert_eq!(place("42"), Ok(OffsetSpec::Exactly(Offset::new(42))));
        assert_eq!(place("@1700000000000"), at(1_700_000_000_000));
        assert_eq!(place("2023-11-14T22:13:20Z"), at(1_700_000_000_000));
        assert_eq!(place("2023-11-14T23:13:20.5+01:00"), at(1_700_000_000_500));
        assert_eq!(place("2024-02-29 00:00:00-00:30"), at(1_709_166_600_000));
        for bad in [
            "",
            "start",
            "-1",
            "@x",
            "2023-02-29T00:00:00Z",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "99999999999999999999",
        ] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
