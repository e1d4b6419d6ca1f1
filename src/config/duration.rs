//! Durations as people write them, and back.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoDuration {
    /// A number and nothing else.
    UnitMissing,
    /// A number, and letters that are no unit.
    UnitUnknown(String),
    /// More than can be counted.
    TooLong,
    /// Something else.
    NotUnderstood,
}

/// Reads `500ms`, `5s`, `1.5s`, `2m`, `1h30m`, `1d`.
///
/// # Errors
/// `NoDuration` says what is wrong with it.
pub fn duration(text: &str) -> Result<Duration, NoDuration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(NoDuration::NotUnderstood);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let plain = number.starts_with(|c: char| c.is_ascii_digit()) && number.ends_with(|c: char| c.is_ascii_digit());
        let number = number.parse::<f64>().ok().filter(|_| plain).ok_or(NoDuration::NotUnderstood)?;
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            "" => return Err(NoDuration::UnitMissing),
            other if other.chars().all(char::is_alphabetic) => return Err(NoDuration::UnitUnknown(other.into())),
            _ => return Err(NoDuration::NotUnderstood),
        };
        // Rounded to the microsecond, so that 0.1s is 100ms and not a hair less.
        let micros = (number * seconds * 1e6).round();
        if micros > 1e15 {
            return Err(NoDuration::TooLong);
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let part = Duration::from_micros(micros as u64);
        total += part;
        rest = next;
    }
    Ok(total)
}

/// A duration as it is written in a configuration, in the largest unit without a rest.
pub fn duration_text(d: Duration) -> String {
    let micros = d.as_micros();
    if micros == 0 {
        return "0s".into();
    }
    for (unit, size) in [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000)] {
        // "60s" and "90s" are read more easily than "1m" and "1.5m".
        if micros.is_multiple_of(size) && (unit == "s" || micros / size > 1 || micros > 60_000_000) {
            return format!("{}{unit}", micros / size);
        }
    }
    if micros > 1_000_000 && micros.is_multiple_of(100_000) {
        return format!("{}.{}s", micros / 1_000_000, micros % 1_000_000 / 100_000);
    }
    if micros.is_multiple_of(1000) { format!("{}ms", micros / 1000) } else { format!("{}ms", d.as_secs_f64() * 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, ms) in [
            ("500ms", 500),
            ("5s", 5_000),
            ("0s", 0),
            ("1.5s", 1_500),
            ("0.1s", 100),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(duration(text), Ok(MS(ms)), "{text}");
        }
        for (text, trouble) in [
            ("5", NoDuration::UnitMissing),
            ("1h5", NoDuration::UnitMissing),
            ("5sec", NoDuration::UnitUnknown("sec".into())),
            ("5 s", NoDuration::NotUnderstood),
            ("", NoDuration::NotUnderstood),
            ("s", NoDuration::NotUnderstood),
            ("-5s", NoDuration::NotUnderstood),
            (".5s", NoDuration::NotUnderstood),
            ("1.2.3s", NoDuration::NotUnderstood),
            ("five", NoDuration::NotUnderstood),
            ("99999999999999999999d", NoDuration::TooLong),
        ] {
            assert_eq!(duration(text), Err(trouble), "{text}");
        }
    }

    #[test]
    fn a_shown_duration_reads_back_as_itself() {
        for (ms, text) in [
            (0, "0s"),
            (50, "50ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (1_500, "1.5s"),
            (1_001, "1001ms"),
            (60_000, "60s"),
            (90_000, "90s"),
            (120_000, "2m"),
            (3_600_000, "1h"),
            (7_200_000, "2h"),
        ] {
            assert_eq!(duration_text(MS(ms)), text);
            assert_eq!(duration(text), Ok(MS(ms)));
        }
        assert_eq!(duration_text(Duration::from_micros(50_100)), "50.1ms");
    }
}
