//! Loss and gradients of the head against a plain evaluation and its differences, in f64.

use protperf_core::Execution;
use protperf_cpu::Isa;
use protperf_model::head::{HeadGradients, HeadWeights, Targets, token_loss};
use std::sync::atomic::AtomicBool;

const TOKENS: usize = 300;
const WIDTH: usize = 11;
const CLASSES: usize = 29;
const WEIGHT: f64 = 0.37;

fn numbers(len: usize, seed: usize) -> Vec<f64> {
    (0..len).map(|i| (((i + 1) * (seed + 3) * 7919) % 1009) as f64 / 504.5 - 1.0).collect()
}

/// hidden, norm, embedding.
fn tensors() -> [Vec<f64>; 3] {
    [numbers(TOKENS * WIDTH, 1), numbers(WIDTH, 2), numbers(CLASSES * WIDTH, 3).iter().map(|x| 3.0 * x).collect()]
}

fn targets() -> (Vec<i64>, Vec<i64>) {
    let positions: Vec<i64> = (0..TOKENS as i64).filter(|at| at % 3 != 1).collect();
    let classes = positions.iter().map(|at| at * 7 % CLASSES as i64).collect();
    (positions, classes)
}

fn plain([hidden, norm, embedding]: &[Vec<f64>; 3]) -> f64 {
    let (positions, classes) = targets();
    let mut loss = 0.0;
    for (at, class) in positions.into_iter().zip(classes) {
        let x = &hidden[at as usize * WIDTH..][..WIDTH];
        let rms = (x.iter().map(|x| x * x).sum::<f64>() / WIDTH as f64 + f64::from(f32::EPSILON)).sqrt();
        let logit = |class: usize| -> f64 {
            let row = &embedding[class * WIDTH..][..WIDTH];
            x.iter().zip(norm).zip(row).map(|((x, g), e)| x / rms * g * e).sum()
        };
        loss += (0..CLASSES).map(|class| logit(class).exp()).sum::<f64>().ln() - logit(class as usize);
    }
    WEIGHT * loss
}

#[test]
fn the_loss_is_the_plain_one_and_gradients_are_limits_of_its_differences() {
    let (positions, classes) = targets();
    let targets = Targets { positions: &positions, classes: &classes };
    let tensors = tensors();
    let cancel = AtomicBool::new(false);
    for isa in Isa::available() {
        for num_threads in [1, 2, 3] {
            let run = Execution { num_threads, cancel: &cancel };
            let weights = HeadWeights { norm: &tensors[1], embedding: &tensors[2] };
            let mut found = tensors.clone().map(|tensor| vec![f64::NAN; tensor.len()]);
            let [hidden, norm, embedding] = &mut found;
            let gradients = HeadGradients { hidden, norm, embedding };
            let loss = token_loss(isa, &tensors[0], weights, targets, WEIGHT, Some(gradients), &run).unwrap();
            let alone = token_loss(isa, &tensors[0], weights, targets, WEIGHT, None, &run).unwrap();
            assert_eq!(loss, alone);
            assert!((loss - plain(&tensors)).abs() < 1e-10 * loss.abs());
            for (at, gradient) in found.iter().enumerate() {
                let direction = numbers(gradient.len(), 50 + at);
                let moved = |by: f64| {
                    let mut moved = tensors.clone();
                    moved[at].iter_mut().zip(&direction).for_each(|(x, d)| *x += by * d);
                    plain(&moved)
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                let found: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                assert!((slope - found).abs() < 1e-6 * (1.0 + slope.abs()), "{isa:?} {at}: {slope} {found}");
            }
        }
    }
}

#[test]
fn tokens_without_a_target_have_no_gradient() {
    // Several panels wide, and the last tile is the end of a sequence alone.
    let (width, tokens) = (130, 513);
    let (hidden, norm, embedding) = (numbers(tokens * width, 1), numbers(width, 2), numbers(CLASSES * width, 3));
    let cancel = AtomicBool::new(false);
    let run = Execution { num_threads: 1, cancel: &cancel };
    let weights = HeadWeights { norm: &norm, embedding: &embedding };
    for isa in Isa::available() {
        for count in [0, 1, tokens as i64 - 1] {
            let positions: Vec<i64> = (0..count).collect();
            let targets = Targets { positions: &positions, classes: &vec![5; count as usize] };
            let mut found = [vec![f64::NAN; hidden.len()], vec![f64::NAN; norm.len()], vec![f64::NAN; embedding.len()]];
            let [hidden_gradient, norm, embedding] = &mut found;
            let gradients = HeadGradients { hidden: hidden_gradient, norm, embedding };
            token_loss(isa, &hidden, weights, targets, 1.0, Some(gradients), &run).unwrap();
            assert!(found.iter().flatten().all(|x| x.is_finite()));
            assert!(found[0][count as usize * width..].iter().all(|&x| x == 0.0));
            assert_eq!(found[2].iter().any(|&x| x != 0.0), count > 0);
        }
    }
}

#[test]
fn positions_and_classes_that_do_not_exist_are_refused() {
    let [hidden, norm, embedding] = tensors();
    let cancel = AtomicBool::new(false);
    let run = Execution { num_threads: 1, cancel: &cancel };
    let weights = HeadWeights { norm: &norm, embedding: &embedding };
    let isa = Isa::available()[0];
    for (positions, classes) in
        [([0, 0], [0, 0]), ([-1, 0], [0, 0]), ([0, 300], [0, 0]), ([0, 1], [0, 29]), ([0, 1], [-1, 0])]
    {
        let targets = Targets { positions: &positions, classes: &classes };
        assert!(token_loss(isa, &hidden, weights, targets, 1.0, None, &run).is_err());
    }
}
