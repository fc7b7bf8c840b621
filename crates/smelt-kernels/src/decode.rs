//! Narrow floats as single values, by table.
//!
//! E4M3 (`FN`): sign, 4 exponent bits with bias 7, 3 mantissa bits; no infinity, 0x7F and 0xFF are
//! NaN: `(-1)^s · 2^(e-7) · (1 + m/8)`, subnormal `(-1)^s · 2^-6 · m/8`.

/// Every value of E4M3 by its byte.
static E4M3: [f32; 256] = table();

/// The value of a byte of E4M3.
pub fn e4m3_to_f32(byte: u8) -> f32 {
    E4M3[byte as usize]
}

const fn table() -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        values[byte] = value(byte as u8);
        byte += 1;
    }
    values
}

const fn value(byte: u8) -> f32 {
    let (exponent, mantissa) = ((byte >> 3) & 15, byte & 7);
    let magnitude = match exponent {
        15 if mantissa == 7 => f32::NAN,
        0 => mantissa as f32 / 512.0,
        // 2^(e-7) by its bits: an f32 exponent has bias 127.
        _ => f32::from_bits((exponent as u32 + 120) << 23) * (1.0 + mantissa as f32 / 8.0),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::e4m3_to_f32;

    #[test]
    fn the_landmarks_of_e4m3() {
        let pairs = [(0x00, 0.0), (0x01, 0.001_953_125), (0x08, 0.015_625), (0x38, 1.0), (0x7e, 448.0)];
        for (byte, value) in pairs {
            assert_eq!(e4m3_to_f32(byte), value);
            assert_eq!(e4m3_to_f32(byte | 0x80), -value);
        }
        assert!(e4m3_to_f32(0x7f).is_nan() && e4m3_to_f32(0xff).is_nan());
    }
}
