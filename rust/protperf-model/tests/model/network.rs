//! The fast network against the plain one: every kind of attention, both modes, packed, in pieces, on every instruction set.

use protperf_core::alphabet::VOCABULARY_SIZE;
use protperf_core::{Element, Error, Execution, FeatureMap};
use protperf_cpu::Isa;
use protperf_model::config::{Config, Objective};
use protperf_model::cpu::CpuDevice;
use protperf_model::device::{Device, Layer, Wanted};
use protperf_model::fault::{Fault, Result};
use protperf_model::network::{Mode, Network, State};
use protperf_model::pool::{Pool, PoolKind};
use protperf_model::reference::Plain;
use protperf_model::source::TensorSource;
use protperf_model::weights::{Attention, BlockShape};
use std::sync::atomic::AtomicBool;

static NEVER: AtomicBool = AtomicBool::new(false);
/// Lengths of packed sequences: none, one, and borders of chunks of 64 and tiles of 128.
pub(super) const LENGTHS: [usize; 7] = [1, 0, 2, 63, 64, 65, 130];

pub(super) fn with_threads(num_threads: usize) -> Execution<'static> {
    Execution { num_threads, cancel: &NEVER }
}

/// Tensors of made-up numbers of the sizes that a configuration implies, the same for every type.
struct MadeUp(Config);

impl<T: Element> TensorSource<T> for MadeUp {
    fn tensor(&self, name: &str) -> Result<Vec<T>> {
        let (at, shape) = self
            .0
            .tensors()
            .into_iter()
            .enumerate()
            .find(|(_, row)| row.0 == name)
            .map(|(at, row)| (at, row.1))
            .unwrap();
        let width = *shape.last().unwrap() as f64;
        let is_trigonometric = matches!(self.0.attention, Attention::Favor { map: FeatureMap::Trigonometric, .. });
        let (center, spread) = match name {
            _ if name.ends_with("norm.weight") => (1.0, 0.2),
            _ if name.ends_with("log_temperature") => (0.5, 0.3),
            // Sums of cosines that nearly cancel have no correct digits: judged where they do not.
            _ if name.ends_with("omega") && is_trigonometric => (0.0, 0.6),
            _ if name.ends_with("omega") => (0.0, 1.7),
            _ if name.starts_with("embedding") => (0.0, 0.5),
            _ => (0.0, 1.7 / width.sqrt()),
        };
        let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(at as u64 + 1);
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 11) as f64 / (1u64 << 53) as f64;
            // As a file stores it, so that every type has the same numbers.
            T::from_f64(f64::from((center + spread * (2.0 * unit - 1.0)) as f32))
        };
        Ok((0..shape.iter().product()).map(|_| number()).collect())
    }
}

pub(super) fn config(attention: Attention, shape: BlockShape) -> Config {
    Config { num_layers: 2, shape, num_features: 12, attention, objective: Objective::Both }
}

pub(super) fn all_attentions() -> Vec<Attention> {
    let favor = |map| Attention::Favor { map, num_features: 12 };
    use FeatureMap::{Elu1, Hyperbolic, Positive, Relu, Smreg, Trigonometric};
    let maps = [Positive, Hyperbolic, Smreg, Relu, Elu1, Trigonometric];
    maps.into_iter().map(favor).chain([Attention::Exact]).collect()
}

pub(super) const ODD: BlockShape = BlockShape { model_dim: 19, num_heads: 3, head_dim: 6, ffn_dim: 29 };
pub(super) const EVEN: BlockShape = BlockShape { model_dim: 32, num_heads: 2, head_dim: 16, ffn_dim: 48 };

pub(super) fn network<T: Element, D: Device<T>>(config: &Config, device: D) -> Network<T, D> {
    Network::new(config.clone(), &MadeUp(config.clone()), device, &with_threads(1)).unwrap()
}

pub(super) fn batch(lengths: &[usize]) -> (Vec<u8>, Vec<i64>) {
    let tokens = (0..lengths.iter().sum::<usize>()).map(|i| ((i * i * 31 + i * 7) % VOCABULARY_SIZE) as u8).collect();
    let mut borders = vec![0];
    lengths.iter().for_each(|&len| borders.push(borders[borders.len() - 1] + len as i64));
    (tokens, borders)
}

pub(super) fn log_probs<T: Element, D: Device<T>>(
    network: &Network<T, D>,
    (tokens, borders): (&[u8], &[i64]),
    mode: Mode,
    rows: Option<&[i64]>,
    num_threads: usize,
) -> Vec<T> {
    let mut out = vec![T::from_f64(f64::NAN); rows.map_or(tokens.len(), <[i64]>::len) * VOCABULARY_SIZE];
    let wanted = Wanted::LogProbs { rows, targets: None, out: &mut out };
    network.read(tokens, borders, mode, wanted, &with_threads(num_threads)).unwrap();
    out
}

/// All log-probabilities.
fn every<T>(out: &mut [T]) -> Wanted<'_, T> {
    Wanted::LogProbs { rows: None, targets: None, out }
}

fn hidden<T: Element, D: Device<T>>(
    network: &Network<T, D>,
    batch: (&[u8], &[i64]),
    mode: Mode,
    layer: Layer,
) -> Vec<T> {
    let mut out = vec![T::from_f64(f64::NAN); batch.0.len() * network.config().shape.model_dim];
    let wanted = Wanted::Hidden { layer, out: &mut out };
    network.read(batch.0, batch.1, mode, wanted, &with_threads(2)).unwrap();
    out
}

/// The largest difference; NaN where one is NaN.
pub(super) fn apart<A: Element, B: Element>(a: &[A], b: &[B]) -> f64 {
    assert_eq!(a.len(), b.len());
    let worst = |worst: f64, x: f64| if worst.is_nan() || x <= worst { worst } else { x };
    a.iter().zip(b).map(|(a, b)| (a.to_f64() - b.to_f64()).abs()).fold(0.0, worst)
}

pub(super) fn bits<T: Element>(x: &[T]) -> Vec<u64> {
    x.iter().map(|x| x.to_f64().to_bits()).collect()
}

/// Log-probabilities and hidden states are at most so far from the plain network's.
pub(super) fn check_against_plain<T: Element, D: Device<T>>(
    device: D,
    attention: Attention,
    shape: BlockShape,
    most: f64,
) {
    let config = config(attention, shape);
    let (fast, plain) = (network::<T, _>(&config, device), network(&config, Plain));
    let (tokens, borders) = batch(&LENGTHS);
    let all = (&tokens[..], &borders[..]);
    for mode in [Mode::Masked, Mode::Causal] {
        let found = apart(&log_probs(&fast, all, mode, None, 2), &log_probs(&plain, all, mode, None, 1));
        assert!(found <= most, "{attention:?} {mode:?}: {found:e}");
        for layer in [Layer::After(0), Layer::After(1), Layer::After(2), Layer::Last] {
            let found = apart(&hidden(&fast, all, mode, layer), &hidden(&plain, all, mode, layer));
            assert!(found <= 10.0 * most, "{attention:?} {mode:?} {layer:?}: {found:e}");
        }
    }
}

#[test]
fn every_kind_of_attention_matches_the_plain_network_on_every_instruction_set() {
    for isa in Isa::available() {
        for attention in all_attentions() {
            println!("{isa:?}");
            let device = CpuDevice { isa };
            check_against_plain::<f64, _>(device, attention, ODD, 1e-12);
            check_against_plain::<f64, _>(device, attention, EVEN, 1e-12);
            check_against_plain::<f32, _>(device, attention, ODD, 2e-5);
            check_against_plain::<f32, _>(device, attention, EVEN, 2e-5);
        }
    }
}

#[test]
fn rows_are_those_of_all_in_any_order_and_number() {
    check_rows(&network::<f32, _>(&config(all_attentions()[0], ODD), CpuDevice { isa: Isa::from_env().unwrap() }));
}

pub(super) fn check_rows<D: Device<f32>>(network: &Network<f32, D>) {
    let (tokens, borders) = batch(&LENGTHS);
    let all = log_probs(network, (&tokens, &borders), Mode::Masked, None, 1);
    for rows in [vec![], vec![5], vec![300, 0, 5, 5, 64]] {
        let found = log_probs(network, (&tokens, &borders), Mode::Masked, Some(&rows), 1);
        let wanted = rows.iter().flat_map(|&row| &all[row as usize * VOCABULARY_SIZE..][..VOCABULARY_SIZE]);
        assert_eq!(found, wanted.copied().collect::<Vec<_>>());
    }
}

#[test]
fn a_target_alone_has_the_bits_that_it_has_among_all() {
    check_targets(&network::<f32, _>(&config(all_attentions()[0], ODD), CpuDevice { isa: Isa::from_env().unwrap() }));
}

pub(super) fn check_targets<D: Device<f32>>(network: &Network<f32, D>) {
    let (tokens, borders) = batch(&LENGTHS);
    let targets: Vec<u8> = tokens.iter().map(|token| (token * 5 + 2) % VOCABULARY_SIZE as u8).collect();
    for mode in [Mode::Masked, Mode::Causal] {
        let all = log_probs(network, (&tokens, &borders), mode, None, 1);
        for rows in [None, Some(vec![]), Some(vec![300, 0, 5, 5, 64])] {
            let rows = rows.as_deref();
            let count = rows.map_or(tokens.len(), <[i64]>::len);
            let mut out = vec![f32::NAN; count];
            let wanted = Wanted::LogProbs { rows, targets: Some(&targets[..count]), out: &mut out };
            network.read(&tokens, &borders, mode, wanted, &with_threads(2)).unwrap();
            let row_of = |at: usize| rows.map_or(at, |rows| rows[at] as usize);
            let expected = (0..count).map(|at| all[row_of(at) * VOCABULARY_SIZE + usize::from(targets[at])]);
            assert_eq!(bits(&out), bits(&expected.collect::<Vec<_>>()), "{mode:?}");
        }
    }
}

/// [`LENGTHS`], and a sequence that is pooled in several blocks.
const POOLED: [usize; 8] = [1, 0, 2, 63, 64, 65, 130, 600];

/// Pools of every kind, of whole sequences, parts and single tokens, in no order; of no tokens last.
fn pools() -> Vec<Pool> {
    let pool = |sequence, tokens, kind| Pool { sequence, tokens, kind };
    let query = |query| PoolKind::Attention { query };
    let mut all =
        vec![pool(6, 1..129, PoolKind::Mean), pool(0, 0..1, PoolKind::Max), pool(6, 129..130, PoolKind::Mean)];
    for (sequence, &len) in POOLED.iter().enumerate().filter(|(_, len)| **len > 1) {
        all.extend([PoolKind::Mean, PoolKind::Max, query(len - 1), query(0)].map(|kind| pool(sequence, 1..len, kind)));
    }
    all.push(pool(1, 0..0, PoolKind::Max));
    all
}

pub(super) fn pooled<T: Element, D: Device<T>>(
    network: &Network<T, D>,
    (tokens, borders): (&[u8], &[i64]),
    layer: Layer,
    pools: &[Pool],
) -> Vec<f64> {
    let mut out = vec![f64::NAN; pools.len() * network.config().shape.model_dim];
    let wanted = Wanted::Pooled { layer, pools, out: &mut out };
    network.read(tokens, borders, Mode::Masked, wanted, &with_threads(2)).unwrap();
    out
}

/// The formulas written out.
fn by_hand(states: &[f64], pool: &Pool, c: usize) -> Vec<f64> {
    let row = |token: usize| &states[token * c..][..c];
    let column = |axis: usize| pool.tokens.clone().map(move |token| row(token)[axis]);
    let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let weights: Vec<f64> = match pool.kind {
        PoolKind::Max => return (0..c).map(|axis| column(axis).fold(f64::MIN, f64::max)).collect(),
        PoolKind::Mean => pool.tokens.clone().map(|_| 1.0).collect(),
        PoolKind::Attention { query } => {
            let dot = |x: &[f64]| x.iter().zip(row(query)).map(|(x, y)| x * y).sum::<f64>();
            let cosine = |token: usize| dot(row(token)) / (length(row(token)) * length(row(query)));
            pool.tokens.clone().map(|token| ((c as f64).sqrt() * cosine(token)).exp()).collect()
        }
    };
    let total: f64 = weights.iter().sum();
    (0..c).map(|axis| column(axis).zip(&weights).map(|(x, w)| x * w).sum::<f64>() / total).collect()
}

#[test]
fn pooled_states_follow_their_formulas() {
    let device = CpuDevice { isa: Isa::from_env().unwrap() };
    check_pools::<f64, _>(device, 1e-12);
    check_pools::<f32, _>(device, 2e-4);
}

/// Pooled states are at most so far from what the hidden states of the plain network give.
pub(super) fn check_pools<T: Element, D: Device<T>>(device: D, most: f64) {
    let config = config(all_attentions()[0], ODD);
    let (fast, plain) = (network::<T, _>(&config, device), network(&config, Plain));
    let ((tokens, borders), pools) = (batch(&POOLED), pools());
    let (all, c) = ((&tokens[..], &borders[..]), ODD.model_dim);
    for layer in [Layer::After(0), Layer::After(1), Layer::After(2), Layer::Last] {
        let states = hidden(&plain, all, Mode::Masked, layer);
        let found = pooled(&fast, all, layer, &pools);
        assert!(apart(&pooled(&plain, all, layer, &pools[..5]), &found[..5 * c]) <= most);
        for (pool, found) in pools.iter().zip(found.chunks(c)) {
            let first = borders[pool.sequence] as usize * c;
            if pool.tokens.is_empty() {
                assert!(found.iter().all(|x| x.is_nan()));
            } else {
                let worst = apart(&by_hand(&states[first..], pool, c), found);
                assert!(worst <= most, "{layer:?} {pool:?}: {worst:e}");
            }
        }
    }
}

#[test]
fn threads_and_batch_mates_change_no_bit() {
    let (tokens, borders) = batch(&LENGTHS);
    for attention in all_attentions() {
        let network = network::<f32, _>(&config(attention, ODD), CpuDevice { isa: Isa::from_env().unwrap() });
        for mode in [Mode::Masked, Mode::Causal] {
            let one = log_probs(&network, (&tokens, &borders), mode, None, 1);
            for threads in 2..=4 {
                assert_eq!(bits(&one), bits(&log_probs(&network, (&tokens, &borders), mode, None, threads)));
            }
            check_alone(&network, mode, &one);
        }
    }
}

/// Each sequence of a batch has the bits that it has alone.
pub(super) fn check_alone<D: Device<f32>>(network: &Network<f32, D>, mode: Mode, all: &[f32]) {
    let (tokens, borders) = batch(&LENGTHS);
    for ends in borders.windows(2) {
        let (start, end) = (ends[0] as usize, ends[1] as usize);
        let alone = log_probs(network, (&tokens[start..end], &[0, ends[1] - ends[0]]), mode, None, 1);
        let among = &all[start * VOCABULARY_SIZE..end * VOCABULARY_SIZE];
        assert_eq!(bits(&alone), bits(among), "{:?} {mode:?} {start}..{end}", network.config().attention);
    }
}

/// Log-probabilities of two sequences read in pieces of the given lengths.
pub(super) fn in_pieces<T: Element, D: Device<T>>(
    network: &Network<T, D>,
    tokens: [&[u8]; 2],
    pieces: [usize; 2],
) -> [Vec<T>; 2] {
    let (mut state, mut found) = (network.empty_state(2).unwrap(), [Vec::new(), Vec::new()]);
    let mut at = [0, 0];
    while at[0] < tokens[0].len() || at[1] < tokens[1].len() {
        let ends = [0, 1].map(|i| tokens[i].len().min(at[i] + pieces[i]));
        let parts = [0, 1].map(|i| &tokens[i][at[i]..ends[i]]);
        let borders = [0, parts[0].len() as i64, (parts[0].len() + parts[1].len()) as i64];
        let mut out = vec![T::from_f64(f64::NAN); borders[2] as usize * VOCABULARY_SIZE];
        state.advance(&parts.concat(), &borders, every(&mut out), &with_threads(2)).unwrap();
        let (first, second) = out.split_at(parts[0].len() * VOCABULARY_SIZE);
        found[0].extend_from_slice(first);
        found[1].extend_from_slice(second);
        at = ends;
        assert_eq!(state.positions(), at.map(|at| at as u64));
    }
    found
}

#[test]
fn pieces_of_any_length_and_single_tokens_give_what_the_whole_gives() {
    let (tokens, _) = batch(&[150, 70]);
    let sequences = [&tokens[..150], &tokens[150..]];
    for attention in all_attentions() {
        let config = config(attention, ODD);
        for isa in Isa::available() {
            let fast = network::<f32, _>(&config, CpuDevice { isa });
            let double = network::<f64, _>(&config, CpuDevice { isa });
            let plain = network(&config, Plain);
            let whole = log_probs(&plain, (&tokens, &[0, 150, 220]), Mode::Causal, None, 1);
            let (first, second) = whole.split_at(150 * VOCABULARY_SIZE);
            for pieces in [[1, 1], [7, 64], [150, 0], [64, 33], [200, 200]] {
                let pieces = if pieces[1] == 0 { [150, 70] } else { pieces };
                let found = in_pieces(&fast, sequences, pieces);
                let worst = apart(&found[0], first).max(apart(&found[1], second));
                assert!(worst <= 2e-5, "{isa:?} {attention:?} {pieces:?}: {worst:e}");
                let found = in_pieces(&double, sequences, pieces);
                let worst = apart(&found[0], first).max(apart(&found[1], second));
                assert!(worst <= 1e-12, "{isa:?} {attention:?} {pieces:?}: {worst:e}");
            }
        }
    }
}

#[test]
fn selected_states_go_on_as_their_sequences_would() {
    for attention in all_attentions() {
        check_selected(&network(&config(attention, EVEN), CpuDevice { isa: Isa::from_env().unwrap() }));
    }
}

pub(super) fn check_selected<D: Device<f32>>(network: &Network<f32, D>) {
    let (tokens, _) = batch(&[40, 20, 30]);
    let parts = [&tokens[..40], &tokens[40..60], &tokens[60..]];
    let attention = network.config().attention;
    let run = with_threads(2);
    let mut state = network.empty_state(2).unwrap();
    let untouched = state.select(&[1, 1, 0]).unwrap();
    assert_eq!(untouched.positions(), [0, 0, 0]);
    let mut out = vec![0.0; 60 * VOCABULARY_SIZE];
    state.advance(&tokens[..60], &[0, 40, 60], every(&mut out), &run).unwrap();
    // Sequence 1 twice, in front of sequence 0; and nothing for the first of them.
    let mut chosen = state.select(&[1, 1, 0]).unwrap();
    assert_eq!(chosen.positions(), [20, 20, 40]);
    let mut found = vec![0.0; 60 * VOCABULARY_SIZE];
    let next = [parts[2], parts[2]].concat();
    chosen.advance(&next, &[0, 0, 30, 60], every(&mut found), &run).unwrap();
    assert_eq!(chosen.positions(), [20, 50, 70]);
    for (prefix, found) in [parts[1], parts[0]].into_iter().zip(found.chunks(30 * VOCABULARY_SIZE)) {
        let whole = [prefix, parts[2]].concat();
        let borders = [0, whole.len() as i64];
        let wanted = log_probs(network, (&whole, &borders), Mode::Causal, None, 1);
        let worst = apart(found, &wanted[prefix.len() * VOCABULARY_SIZE..]);
        assert!(worst <= 1e-5, "{attention:?}: {worst:e}");
    }
    assert_eq!(state.positions(), [40, 20]);
    assert!(state.select(&[2]).is_err() && state.select(&[-1]).is_err());
}

#[test]
fn a_state_goes_on_the_same_after_any_question() {
    let (tokens, _) = batch(&[70, 1]);
    let (borders, run) = ([0, 70], with_threads(2));
    for attention in all_attentions() {
        let network = network::<f32, _>(&config(attention, ODD), CpuDevice { isa: Isa::from_env().unwrap() });
        // The next token after another call on 70 tokens.
        let after = |ask: &dyn Fn(&mut State<f32, CpuDevice>)| {
            let (mut state, mut out) = (network.empty_state(1).unwrap(), vec![0.0; VOCABULARY_SIZE]);
            ask(&mut state);
            state.advance(&tokens[70..], &[0, 1], every(&mut out), &run).unwrap();
            bits(&out)
        };
        let mut all = vec![0.0; 70 * VOCABULARY_SIZE];
        network.read(&tokens[..70], &borders, Mode::Causal, every(&mut all), &run).unwrap();
        let read = |rows: Option<&[i64]>, state: &mut State<f32, CpuDevice>| {
            let mut out = vec![0.0; rows.map_or(70, <[i64]>::len) * VOCABULARY_SIZE];
            let wanted = Wanted::LogProbs { rows, targets: None, out: &mut out };
            state.advance(&tokens[..70], &borders, wanted, &run).unwrap();
            for (&row, out) in rows.unwrap_or_default().iter().zip(out.chunks(VOCABULARY_SIZE)) {
                assert_eq!(bits(out), bits(&all[row as usize * VOCABULARY_SIZE..][..VOCABULARY_SIZE]));
            }
        };
        let wanted = after(&|state| read(None, state));
        assert_eq!(after(&|state| read(Some(&[]), state)), wanted);
        assert_eq!(after(&|state| read(Some(&[69, 3]), state)), wanted);
        for layer in [Layer::After(0), Layer::After(2), Layer::Last] {
            let hidden = |state: &mut State<f32, CpuDevice>| {
                let mut out = vec![0.0; 70 * ODD.model_dim];
                let wanted = Wanted::Hidden { layer, out: &mut out };
                state.advance(&tokens[..70], &borders, wanted, &run).unwrap();
            };
            assert_eq!(after(&hidden), wanted, "{layer:?}");
        }
    }
}

#[test]
fn arguments_out_of_range_are_refused_by_name() {
    let network = network::<f32, _>(&config(all_attentions()[0], ODD), CpuDevice { isa: Isa::from_env().unwrap() });
    let run = with_threads(1);
    let fault = |tokens: &[u8], borders: &[i64], rows: Option<&[i64]>, len: usize| {
        let mut out = vec![0.0; len * VOCABULARY_SIZE];
        let wanted = Wanted::LogProbs { rows, targets: None, out: &mut out };
        network.read(tokens, borders, Mode::Masked, wanted, &run).unwrap_err().to_string()
    };
    assert!(fault(&[3, 29], &[0, 2], None, 2).starts_with("tokens hold 29 at place 1"));
    for borders in [&[][..], &[0], &[0, 1], &[0, 3], &[1, 2], &[-1, 2], &[0, i64::MAX]] {
        assert!(fault(&[3, 4], borders, None, 2).starts_with("borders must run from 0 to 2"), "{borders:?}");
    }
    assert!(fault(&[3, 4], &[0, 2, 1, 2], None, 2).starts_with("borders decrease"));
    for row in [2, -1, i64::MIN, i64::MAX] {
        assert!(fault(&[3, 4], &[0, 2], Some(&[row]), 1).starts_with("rows hold"));
    }
    assert!(fault(&[3, 4], &[0, 2], None, 1).starts_with("out has"));
    let mut out = vec![0.0; 19];
    let wanted = Wanted::Hidden { layer: Layer::After(3), out: &mut out };
    let layer = network.read(&[3], &[0, 1], Mode::Masked, wanted, &run).unwrap_err();
    assert!(layer.to_string().starts_with("layer is 3"));
    let fault = |targets: &[u8]| {
        let wanted = Wanted::LogProbs { rows: None, targets: Some(targets), out: &mut [0.0; 2] };
        network.read(&[3, 4], &[0, 2], Mode::Causal, wanted, &run).unwrap_err().to_string()
    };
    assert!(fault(&[3, 29]).starts_with("targets hold 29"));
    assert!(fault(&[3]).starts_with("targets has"), "{}", fault(&[3]));
    let fault = |sequence, tokens, kind| {
        let wanted =
            Wanted::Pooled { layer: Layer::Last, pools: &[Pool { sequence, tokens, kind }], out: &mut [0.0; 19] };
        network.read(&[3, 4], &[0, 2], Mode::Causal, wanted, &run).unwrap_err().to_string()
    };
    assert!(fault(1, 0..1, PoolKind::Mean).starts_with("pools name sequence 1 of 1"));
    assert!(fault(0, 0..3, PoolKind::Max).starts_with("pools hold tokens 0 to 3"));
    assert!(fault(0, 0..2, PoolKind::Attention { query: 2 }).starts_with("pools name token 2"));
    let mut state = network.empty_state(2).unwrap();
    let fault = state.advance(&[3], &[0, 1], every(&mut [0.0; VOCABULARY_SIZE]), &run).unwrap_err();
    assert!(fault.to_string().starts_with("borders are of 1 sequences"));
    // A refused argument leaves the state as it was.
    state.advance(&[3], &[0, 1, 1], every(&mut [0.0; VOCABULARY_SIZE]), &run).unwrap();
}

#[test]
fn a_state_that_a_call_left_in_the_middle_is_refused() {
    let network = network::<f32, _>(&config(all_attentions()[0], ODD), CpuDevice { isa: Isa::from_env().unwrap() });
    let mut state = network.empty_state(1).unwrap();
    let raised = AtomicBool::new(true);
    let stopped = Execution { num_threads: 1, cancel: &raised };
    let mut out = [0.0; VOCABULARY_SIZE];
    let fault = state.advance(&[3], &[0, 1], every(&mut out), &stopped).unwrap_err();
    assert!(matches!(fault, Fault::Core(Error::Interrupted)));
    let fault = state.advance(&[3], &[0, 1], every(&mut out), &with_threads(1)).unwrap_err();
    assert!(fault.to_string().contains("start again"), "{fault}");
    assert!(state.select(&[0]).is_err());
}
