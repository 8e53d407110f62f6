//! `metadata.creationTimestamp`: a moment as RFC 3339 writes it.

use std::{fmt, str::FromStr};

/// Nanoseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i128);

const NANOS: i128 = 1_000_000_000;
const DAY: i64 = 86_400;

impl Timestamp {
    pub fn from_unix(seconds: i64) -> Self {
        Self(i128::from(seconds) * NANOS)
    }

    fn parse(text: &str) -> Option<Self> {
        let (date, time) = text.split_at_checked(10)?;
        let time = time.strip_prefix(['T', 't', ' '])?;
        let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
        let days_of_month = [
            31,
            28 + i64::from(is_leap(year)),
            31,
            30,
            31,
            30,
            31,
            31,
            30,
            31,
            30,
            31,
        ];
        let length = *days_of_month.get(usize::try_from(month - 1).ok()?)?;
        let (clock, rest) = time.split_at_checked(8)?;
        let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
        // A leap second is allowed by RFC 3339.
        let in_range = (1..=length).contains(&day) && hour < 24 && minute < 60 && second <= 60;
        if !in_range {
            return None;
        }
        let (nanos, zone) = match rest.strip_prefix('.') {
            Some(rest) => {
                let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
                let (fraction, zone) = rest.split_at(digits);
                let kept = fraction.get(..digits.min(9))?;
                let number: i128 = kept.parse().ok()?;
                (number * 10_i128.pow(9 - kept.len() as u32), zone)
            }
            None => (0, rest),
        };
        let offset = match zone {
            "Z" | "z" => 0,
            zone => {
                let sign = match zone.as_bytes().first()? {
                    b'+' => 1,
                    b'-' => -1,
                    _ => return None,
                };
                let [hours, minutes] = numbers(zone.get(1..)?, ':', [2, 2])?;
                if hours > 23 || minutes > 59 {
                    return None;
                }
                sign * (hours * 3600 + minutes * 60)
            }
        };
        let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset;
        Some(Self(i128::from(seconds) * NANOS + nanos))
    }
}

/// Numbers of exactly so many digits, with a separator between.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut found = [0; N];
    for (number, digits) in found.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days since 1970 of a date in the Gregorian calendar. Years begin in March, so that a leap day ends one.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + of_year - 719_468
}

impl FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| "a time such as 2026-01-31T12:00:00Z".to_owned())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0.div_euclid(NANOS) as i64, self.0.rem_euclid(NANOS));
        let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // The inverse of `days`, by 400 years, 100, 4 and 1.
        let days = days + 719_468;
        let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let of_year = day - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = year + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        )?;
        if nanos > 0 {
            let fraction = format!("{nanos:09}");
            write!(f, ".{}", fraction.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_any_zone_and_written_in_utc() {
        for (text, shown) in [
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            ("2024-02-29T23:59:60Z", "2024-03-01T00:00:00Z"),
            ("2026-11-24T12:00:00+02:30", "2026-11-24T09:30:00Z"),
            ("1969-12-31T23:00:00.25-01:00", "1970-01-01T00:00:00.25Z"),
            (
                "2000-03-01t00:00:00.123456789123z",
                "2000-03-01T00:00:00.123456789Z",
            ),
            ("1900-02-28T00:00:00Z", "1900-02-28T00:00:00Z"),
        ] {
            let moment: Timestamp = text.parse().unwrap();
            assert_eq!(moment.to_string(), shown, "{text}");
            assert_eq!(shown.parse::<Timestamp>().unwrap(), moment);
        }
        assert_eq!(
            "2026-11-24T11:29:46Z".parse(),
            Ok(Timestamp::from_unix(1_795_519_786))
        );
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "now",
            "2026-11-24",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+2:00",
            "2026-01-01T00:00:00Zx",
            "2026-01-01é00:00:00Z",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_shown_reads_back(seconds in -62_000_000_000_i64..200_000_000_000) {
            let moment = Timestamp::from_unix(seconds);
            proptest::prop_assert_eq!(moment.to_string().parse(), Ok(moment));
        }
    }
}
