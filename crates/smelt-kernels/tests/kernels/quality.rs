//! How much error the search saves, on weights whose distribution is known.

use smelt_kernels::{Effort, Float, Format, Isa, Mode, Rounding};

use crate::seeds::Random;
use crate::{How, Parts, quantize, search};

/// Elements of a sample.
const SAMPLE: usize = 64 * 1024;

/// A Gaussian number of deviation 1.
fn gauss(random: &mut Random) -> f32 {
    // Box and Muller; the logarithm's argument is never 0.
    let radius = (-2.0 * ((f64::from(random.bits()) + 1.0) / 2f64.powi(32)).ln()).sqrt();
    (radius * (std::f64::consts::TAU * f64::from(random.bits()) / 2f64.powi(32)).cos()) as f32
}

/// Student's t with five degrees of freedom.
fn student(random: &mut Random) -> f32 {
    let squares: f32 = (0..5).map(|_| gauss(random).powi(2)).sum();
    gauss(random) / (squares / 5.0).sqrt()
}

fn sample(element: fn(&mut Random) -> f32, deviation: f32) -> Vec<u8> {
    let mut random = Random(7);
    let values: Vec<u8> =
        (0..SAMPLE).flat_map(|_| (element(&mut random) * deviation).to_le_bytes()).collect();
    let mut out = vec![0; SAMPLE * 2];
    Isa::best().convert(Float::F32, Float::Bf16, &values, &mut out);
    out
}

/// Squared error as a share of the squares, times 10,000.
fn share(format: Format, input: &[u8], parts: &Parts) -> f64 {
    let distortion = smelt_kernels::distortion(format, Float::Bf16, input, None, parts.stored());
    distortion.error / distortion.energy * 1e4
}

/// Formats with the error that a search may leave of plain rounding's, of Gaussian weights and of
/// Student's: what 840 passes of a coordinate search in NumPy leave, and a hundredth. That search is
/// for the error alone; up to 3 bits half of the length that it takes comes back, which costs a fortieth.
const GOALS: &[(Mode, u8, usize, f64, f64)] = &[
    (Mode::Affine, 2, 64, 0.70, 0.72),
    (Mode::Affine, 2, 128, 0.65, 0.67),
    (Mode::Affine, 3, 64, 0.75, 0.74),
    (Mode::Affine, 3, 128, 0.74, 0.71),
    (Mode::Affine, 4, 32, 0.73, 0.74),
    (Mode::Affine, 4, 64, 0.80, 0.80),
    (Mode::Affine, 4, 128, 0.83, 0.83),
    (Mode::Affine, 5, 64, 0.82, 0.82),
    (Mode::Affine, 6, 64, 0.80, 0.80),
    (Mode::Affine, 8, 64, 0.53, 0.48),
    (Mode::Mxfp4, 4, 32, 1.0, 1.0),
    (Mode::Mxfp8, 8, 32, 1.0, 1.0),
    (Mode::Nvfp4, 4, 16, 0.76, 0.82),
];

#[test]
fn the_search_saves_what_it_should() {
    let samples = [("Gauss", sample(gauss, 0.02)), ("t5", sample(student, 0.02))];
    for (mode, bits, size, gauss, student) in GOALS {
        let format = Format::new(*mode, *bits, *size).unwrap();
        for ((name, input), goal) in samples.iter().zip([gauss, student]) {
            let plain = quantize(Isa::best(), format, Rounding::Gpu, Float::Bf16, input);
            let shares = Effort::ALL.map(|effort| {
                let how = How { effort, importance: None };
                share(format, input, &search(Isa::best(), format, how, Float::Bf16, input))
            });
            let plain = share(format, input, &plain);
            println!("{format} {name}: plain {plain:.4}, searched {shares:.4?}");
            assert!(shares[1] <= plain * goal, "{format} {name}: {} of {plain}", shares[1]);
            // More effort may lose a group, but not a sample.
            assert!(
                shares[1] <= shares[0] && (*bits == 2 || shares[2] <= shares[1]),
                "{format} {name}: {shares:?}"
            );
        }
    }
}
