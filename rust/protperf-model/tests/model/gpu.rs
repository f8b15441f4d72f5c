//! The network on a GPU against the plain one, with the checks that the one on a processor passes.

use crate::network::{
    EVEN, LENGTHS, ODD, all_attentions, apart, batch, bits, check_against_plain, check_alone, check_pools, check_rows,
    check_selected, check_targets, config, in_pieces, log_probs, network,
};
use protperf_core::alphabet::VOCABULARY_SIZE;
use protperf_model::gpu::GpuDevice;
use protperf_model::network::Mode;
use protperf_model::reference::Plain;

/// Whether there is a GPU to test on; with `PROTPERF_REQUIRE_GPU=1` a missing one is a failure.
fn has_gpu() -> bool {
    let (_, fault) = protperf_wgpu::adapters();
    let Some(fault) = fault else { return true };
    assert!(std::env::var("PROTPERF_REQUIRE_GPU").is_err(), "{fault}");
    println!("skipped: {fault}");
    false
}

#[test]
fn every_kind_of_attention_matches_the_plain_network_on_the_gpu() {
    if !has_gpu() {
        return;
    }
    for attention in all_attentions() {
        check_against_plain::<f32, _>(GpuDevice, attention, ODD, 2e-5);
        check_against_plain::<f32, _>(GpuDevice, attention, EVEN, 2e-5);
    }
}

#[test]
fn batch_mates_and_calls_change_no_bit_on_the_gpu() {
    if !has_gpu() {
        return;
    }
    let (tokens, borders) = batch(&LENGTHS);
    for attention in all_attentions() {
        let network = network::<f32, _>(&config(attention, ODD), GpuDevice);
        for mode in [Mode::Masked, Mode::Causal] {
            let all = log_probs(&network, (&tokens, &borders), mode, None, 1);
            assert_eq!(bits(&all), bits(&log_probs(&network, (&tokens, &borders), mode, None, 1)));
            check_alone(&network, mode, &all);
        }
    }
}

#[test]
fn later_tokens_change_no_bit_of_an_earlier_prediction_on_the_gpu() {
    if !has_gpu() {
        return;
    }
    let (tokens, _) = batch(&[130]);
    for attention in all_attentions() {
        let network = network::<f32, _>(&config(attention, ODD), GpuDevice);
        let whole = log_probs(&network, (&tokens, &[0, 130]), Mode::Causal, None, 1);
        for cut in [1, 63, 64, 100] {
            let mut other = tokens.clone();
            other[cut..].iter_mut().for_each(|token| *token = (*token + 5) % VOCABULARY_SIZE as u8);
            let found = log_probs(&network, (&other, &[0, 130]), Mode::Causal, None, 1);
            let end = cut * VOCABULARY_SIZE;
            assert_eq!(bits(&found[..end]), bits(&whole[..end]), "{attention:?} {cut}");
            assert!(bits(&found[end..]) != bits(&whole[end..]));
        }
    }
}

#[test]
fn rows_and_selected_states_are_those_of_all_on_the_gpu() {
    if !has_gpu() {
        return;
    }
    check_rows(&network(&config(all_attentions()[0], ODD), GpuDevice));
    check_targets(&network(&config(all_attentions()[0], ODD), GpuDevice));
    for attention in all_attentions() {
        check_selected(&network(&config(attention, EVEN), GpuDevice));
    }
}

#[test]
fn pooled_states_follow_their_formulas_on_the_gpu() {
    if has_gpu() {
        check_pools::<f32, _>(GpuDevice, 2e-4);
    }
}

#[test]
fn pieces_of_any_length_give_what_the_whole_gives_on_the_gpu() {
    if !has_gpu() {
        return;
    }
    let (tokens, _) = batch(&[80, 20]);
    for attention in all_attentions() {
        let config = config(attention, ODD);
        let (fast, plain) = (network::<f32, _>(&config, GpuDevice), network(&config, Plain));
        let whole = log_probs(&plain, (&tokens, &[0, 80, 100]), Mode::Causal, None, 1);
        let (first, second) = whole.split_at(80 * VOCABULARY_SIZE);
        for pieces in [[5, 1], [66, 20], [80, 7]] {
            let found = in_pieces(&fast, [&tokens[..80], &tokens[80..]], pieces);
            let worst = apart(&found[0], first).max(apart(&found[1], second));
            assert!(worst <= 2e-5, "{attention:?} {pieces:?}: {worst:e}");
        }
    }
}
