// Rows to features: docs/algorithm.md, sections 2 to 4.
//
//     u_m = w_m . x + c_m
//     exponential     phi_m = 2^(u_m - h),  h = factor * sum_l g_l x_l^2 (keys alone)
//     activation      phi_m = f(u_m) + epsilon
//     trigonometric   phi   = [cos u, sin u] * 2^h
//
// Directions carry the scale of the inputs and, in the exponential family, log2(e). The exponent of a feature is
// lowered by its row's shift; a row that is left out has features of nothing. A workgroup makes 64 rows times 64
// projections, so that a number that is read serves 64 products; an invocation makes 8 rows times 8 projections of it. Mode 0: features. Mode 1: slopes of an activation, over the power of two that its feature carries.
// BH: batch entries times heads, those of one group.

// x [BH, rows, D]
@group(0) @binding(1) var<storage, read> inputs: array<f32>;
// per set: directions [P, D], constants [P], factors of squares [D]
@group(0) @binding(2) var<storage, read> parameters: array<f32>;
// [BH, rows]; with flag 0 there are none
@group(0) @binding(3) var<storage, read> shifts: array<i32>;
// [BH]
@group(0) @binding(4) var<storage, read> sets: array<u32>;
// [BH, rows, F]
@group(0) @binding(5) var<storage, read_write> features: array<Feature>;

const LEFT_OUT = -2147483647;
const HUGE = 1073741824.0;
const LARGEST = 1e15;

const ROWS = 64u;
// Fours of rows, and of projections.
const FOURS = 16u;
const AXES = 4u * DEPTH;

// Some axes, AXES of them: [AXES, ROWS] and [AXES, ROWS].
var<workgroup> shared_x: array<vec4f, AXES * FOURS>;
var<workgroup> shared_w: array<vec4f, AXES * FOURS>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = workgroup_number(group);
    if at >= sizes.invocations / 64u {
        return;
    }
    let across = (sizes.projections + ROWS - 1u) / ROWS;
    let down = (sizes.rows + ROWS - 1u) / ROWS;
    let first_projection = at % across * ROWS;
    let first_row = at / across % down * ROWS;
    let batch_head = at / across / down;
    let d = sizes.head_dim;
    let start = sets[batch_head] * (sizes.projections * (d + 1u) + d);
    let constants = start + sizes.projections * d;
    let squares = constants + sizes.projections;
    let row = local / 8u;
    let projection = local % 8u;
    var products_00 = mat4x4f();
    var products_01 = mat4x4f();
    var products_10 = mat4x4f();
    var products_11 = mat4x4f();
    var norms_0 = vec4f();
    var norms_1 = vec4f();
    for (var first_axis = 0u; first_axis < d; first_axis += AXES) {
        let axes = min(AXES, d - first_axis);
        load(batch_head * sizes.rows, first_row, start, first_projection, first_axis, axes, local);
        workgroupBarrier();
        for (var axis = 0u; axis < axes; axis++) {
            let x0 = shared_x[axis * FOURS + row];
            let x1 = shared_x[axis * FOURS + row + 8u];
            let w0 = shared_w[axis * FOURS + projection];
            let w1 = shared_w[axis * FOURS + projection + 8u];
            products_00 += outer(x0, w0);
            products_01 += outer(x0, w1);
            products_10 += outer(x1, w0);
            products_11 += outer(x1, w1);
            let square = parameters[squares + first_axis + axis];
            norms_0 += x0 * x0 * square;
            norms_1 += x1 * x1 * square;
        }
        workgroupBarrier();
    }
    norms_0 *= sizes.factor;
    norms_1 *= sizes.factor;
    let own_row = first_row + 4u * row;
    let own_projection = first_projection + 4u * projection;
    for (var i = 0u; i < 4u; i++) {
        let to = batch_head * sizes.rows + own_row + i;
        if own_row + i < sizes.rows {
            store_four(to, constants, own_projection, products_00[i], norms_0[i]);
            store_four(to, constants, own_projection + 32u, products_01[i], norms_0[i]);
        }
        if own_row + 32u + i < sizes.rows {
            store_four(to + 32u, constants, own_projection, products_10[i], norms_1[i]);
            store_four(to + 32u, constants, own_projection + 32u, products_11[i], norms_1[i]);
        }
    }
}

// Brings some axes to the workgroup; rows and projections that are not there are those of the edge.
fn load(before: u32, first_row: u32, start: u32, first_projection: u32, first_axis: u32, axes: u32, local: u32) {
    let four = local % FOURS;
    let inner = vec4u(4u * four) + vec4u(0u, 1u, 2u, 3u);
    let x = (vec4u(before) + min(vec4u(first_row) + inner, vec4u(sizes.rows - 1u))) * sizes.head_dim + vec4u(first_axis);
    let projections = min(vec4u(first_projection) + inner, vec4u(sizes.projections - 1u));
    let w = vec4u(start + first_axis) + projections * sizes.head_dim;
    for (var axis = local / FOURS; axis < axes; axis += 4u) {
        let raw = vec4f(inputs[x.x + axis], inputs[x.y + axis], inputs[x.z + axis], inputs[x.w + axis]);
        shared_x[axis * FOURS + four] = clamp(raw, vec4f(-sizes.input_limit), vec4f(sizes.input_limit));
        shared_w[axis * FOURS + four] =
            vec4f(parameters[w.x + axis], parameters[w.y + axis], parameters[w.z + axis], parameters[w.w + axis]);
    }
}

fn store_four(row: u32, constants: u32, first: u32, products: vec4f, norm: f32) {
    for (var j = 0u; j < 4u; j++) {
        if first + j < sizes.projections {
            store(row, first + j, products[j] + parameters[constants + first + j], norm);
        }
    }
}

fn store(row: u32, projection: u32, u: f32, norm: f32) {
    let at = row * sizes.features + projection;
    var shift = 0;
    if sizes.flag == 1u {
        shift = shifts[row];
    }
    let nothing = Feature(0.0, EMPTY);
    switch sizes.family {
        case EXPONENTIAL: {
            features[at] = placed(power_of_two(u - norm), shift);
        }
        case TRIGONOMETRIC: {
            let size = power_of_two(norm);
            let circle = cos_and_sin(u);
            features[at] = placed(Feature(size.mantissa * circle.x, size.exponent), shift);
            features[at + sizes.projections] = placed(Feature(size.mantissa * circle.y, size.exponent), shift);
        }
        default: {
            features[at] = placed(activated(u), shift);
        }
    }
}

fn placed(feature: Feature, shift: i32) -> Feature {
    if shift == LEFT_OUT {
        return Feature(0.0, EMPTY);
    }
    return Feature(feature.mantissa, feature.exponent - shift);
}

// 2^x.
fn power_of_two(x: f32) -> Feature {
    let limited = clamp(x, -EXPONENT_LIMIT, EXPONENT_LIMIT);
    let whole = round(limited);
    return Feature(exp2_fraction(limited - whole), i32(whole));
}

// The value, or in mode 1 the slope. Only huge values have an exponent of their own, so that their products are finite.
fn activated(u: f32) -> Feature {
    let found = activation(clamp(u, -LARGEST, LARGEST));
    let value = found.x + sizes.epsilon;
    let huge = split(value);
    let is_huge = abs(value) > HUGE;
    let exponent = select(0, huge.exponent, is_huge);
    if sizes.mode == 1u {
        return Feature(found.y * exp2_int(-exponent), 0);
    }
    return Feature(select(value, huge.mantissa, is_huge), exponent);
}

// Activation maps by their names, in any order; maps.rs reads the numbers.
const RELU = 2u;
const ELU1 = 3u;
const IDENTITY = 4u;
const ABS = 5u;
const RELU2 = 6u;
const SQUARE = 7u;
const SIGMOID = 8u;
const TANH = 9u;
const GELU = 10u;
const COS = 11u;

// f(u) and f'(u), the left derivative where the two differ, but 0 for |u| at 0.
fn activation(u: f32) -> vec2f {
    let positive = max(u, 0.0);
    switch sizes.family {
        case RELU: {
            return vec2f(positive, select(0.0, 1.0, u > 0.0));
        }
        case ELU1: {
            return select(vec2f(exp_negative(min(u, 0.0))), vec2f(u + 1.0, 1.0), u > 0.0);
        }
        case ABS: {
            return vec2f(abs(u), sign(u));
        }
        case RELU2: {
            return vec2f(positive * positive, 2.0 * positive);
        }
        case SQUARE: {
            return vec2f(u * u, 2.0 * u);
        }
        case SIGMOID: {
            return sigmoid(u);
        }
        case TANH: {
            return tangent(u);
        }
        case GELU: {
            return gelu(u);
        }
        case COS: {
            let circle = cos_and_sin(u);
            return vec2f(circle.x, -circle.y);
        }
        // Every map has its case, as a test in maps.rs sees to.
        case IDENTITY, default: {
            return vec2f(u, 1.0);
        }
    }
}

// 1 / (1 + e^-u) and its slope: with e = e^-|u|, 1 / (1 + e) above 0 and e / (1 + e) below.
fn sigmoid(u: f32) -> vec2f {
    let e = exp_negative(-abs(u));
    return vec2f(select(e, 1.0, u > 0.0), e / (1.0 + e)) / (1.0 + e);
}

// tanh(u) = (1 - e) / (1 + e), e = e^-2|u|; its series where the difference would lose digits.
fn tangent(u: f32) -> vec2f {
    let e = exp_negative(-2.0 * abs(u));
    let near = clamp(u, -0.3, 0.3);
    let square = near * near;
    let series = near * (1.0 + square * (-0.33333334 + square * (0.13333334 + square * (-0.053968254 + square * 0.021869488))));
    let far = sign(u) * (1.0 - e) / (1.0 + e);
    return vec2f(select(far, series, abs(u) < 0.3), 4.0 * e / ((1.0 + e) * (1.0 + e)));
}

// u sigmoid(s), s = sqrt(8/pi) (u + 0.044715 u^3). Beyond 32 the sigmoid is 0 or 1 already, and u^3 would overflow.
fn gelu(u: f32) -> vec2f {
    let near = clamp(u, -32.0, 32.0);
    let cubic = 0.0713548163 * near * near;
    let turn = sigmoid(near * (1.59576912 + cubic));
    return vec2f(u * turn.x, turn.x + near * (1.59576912 + 3.0 * cubic) * turn.y);
}

// The built-in ones promise 2^-11; these are right to about a unit in the last place for |u| up to some thousands.
fn cos_and_sin(u: f32) -> vec2f {
    let quarters = round(u * 0.636619772367581343);
    let limited = clamp(quarters, -EXPONENT_LIMIT, EXPONENT_LIMIT);
    let x = clamp(((u - limited * 1.5703125) - limited * 4.837512969970703e-4) - limited * 7.549789954891882e-8, -1.0, 1.0);
    return turned(x, i32(limited));
}
