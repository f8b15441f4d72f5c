// A gate times what it lets through: out = silu(gate) up. An invocation makes four numbers.

// gate and up side by side [rows, 2 F]
@group(0) @binding(1) var<storage, read> gate_up: array<vec4f>;
// [rows, F]
@group(0) @binding(2) var<storage, read_write> out: array<vec4f>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= extents.invocations {
        return;
    }
    let column = at % extents.outputs;
    let gates = at / extents.outputs * extents.inputs + column;
    let gate = gate_up[gates];
    out[at] = vec4f(silu(gate.x), silu(gate.y), silu(gate.z), silu(gate.w)) * gate_up[gates + extents.outputs];
}

// x / (1 + e^-x).
fn silu(x: f32) -> f32 {
    let e = exp_negative(-abs(x));
    return x * select(e, 1.0, x > 0.0) / (1.0 + e);
}
