//! Stand-in for `repo::cbor` until that module lands: length of the first strict DAG-CBOR item.

/// Why bytes are not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CborError(&'static str);

const DEPTH_MAX: usize = 64;

/// Length of the first item.
///
/// # Errors
/// When it is not complete and strict.
pub fn item_len(bytes: &[u8]) -> Result<usize, CborError> {
    let mut at = 0;
    item(bytes, &mut at, 0)?;
    Ok(at)
}

fn head(bytes: &[u8], at: &mut usize) -> Result<(u8, u64), CborError> {
    let first = *bytes.get(*at).ok_or(CborError("cut short"))?;
    *at += 1;
    let (major, info) = (first >> 5, first & 31);
    if major == 7 {
        return match info {
            20..=22 => Ok((7, u64::from(info))),
            _ => Err(CborError("simple value or float")),
        };
    }
    let width = match info {
        0..=23 => return Ok((major, u64::from(info))),
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        _ => return Err(CborError("indefinite length")),
    };
    let raw = bytes.get(*at..*at + width).ok_or(CborError("cut short"))?;
    *at += width;
    let value = raw.iter().fold(0u64, |value, byte| (value << 8) | u64::from(*byte));
    let least = match width {
        1 => 24,
        2 => 1 << 8,
        4 => 1 << 16,
        _ => 1 << 32,
    };
    if value < least {
        return Err(CborError("not the shortest form"));
    }
    Ok((major, value))
}

fn span<'a>(bytes: &'a [u8], at: &mut usize, len: u64) -> Result<&'a [u8], CborError> {
    let len = usize::try_from(len).map_err(|_| CborError("cut short"))?;
    let end = at.checked_add(len).ok_or(CborError("cut short"))?;
    let span = bytes.get(*at..end).ok_or(CborError("cut short"))?;
    *at = end;
    Ok(span)
}

fn item(bytes: &[u8], at: &mut usize, depth: usize) -> Result<(), CborError> {
    if depth > DEPTH_MAX {
        return Err(CborError("nested too deep"));
    }
    let (major, value) = head(bytes, at)?;
    match major {
        0 | 1 if i64::try_from(value).is_err() => Err(CborError("integer out of range")),
        2 => span(bytes, at, value).map(|_| ()),
        3 => std::str::from_utf8(span(bytes, at, value)?)
            .map(|_| ())
            .map_err(|_| CborError("not UTF-8")),
        4 => {
            for _ in 0..value {
                item(bytes, at, depth + 1)?;
            }
            Ok(())
        }
        5 => {
            let mut last: Option<&[u8]> = None;
            for _ in 0..value {
                let (major, len) = head(bytes, at)?;
                if major != 3 {
                    return Err(CborError("map key is not a text"));
                }
                let key = span(bytes, at, len)?;
                if last.is_some_and(|last| (last.len(), last) >= (key.len(), key)) {
                    return Err(CborError("map keys out of order"));
                }
                last = Some(key);
                item(bytes, at, depth + 1)?;
            }
            Ok(())
        }
        6 => {
            if value != 42 {
                return Err(CborError("unknown tag"));
            }
            let (major, len) = head(bytes, at)?;
            let link = span(bytes, at, len)?;
            if major != 2 || link.first() != Some(&0) {
                return Err(CborError("malformed link"));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
