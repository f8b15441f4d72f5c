// What every shader shares: its place in the grid, and numbers.
//
// Nothing here relies on NaN, infinity or denormal numbers, nor on an operation being fused or not: compilers of
// shaders may assume what they like of all of these. The trip count of every loop stays below 65,536 in all, where
// one driver silently stops.

const GROUPS = 32768u;
const LOG2_E = 1.44269504088896341;

// The same for all invocations of a workgroup: where it alone decides, they meet at barriers.
fn workgroup_number(group: vec3u) -> u32 {
    return group.y * GROUPS + group.x;
}

fn invocation(group: vec3u, local: u32) -> u32 {
    return workgroup_number(group) * 64u + local;
}

// 2^k; 0 so far below that a product with it could be denormal.
fn exp2_int(k: i32) -> f32 {
    return select(bitcast<f32>(u32(clamp(k, -126, 127) + 127) << 23u), 0.0, k < -125);
}

fn exp2_int4(k: vec4i) -> vec4f {
    let power = bitcast<vec4f>(vec4u(clamp(k, vec4i(-126), vec4i(127)) + vec4i(127)) << vec4u(23u));
    return select(power, vec4f(0.0), k < vec4i(-125));
}

// 2^f for |f| <= 1/2: the built-in one may be wrong by 64 units in the last place.
fn exp2_fraction(f: f32) -> f32 {
    var sum = 1.545316294512069e-4;
    sum = sum * f + 1.3390863364671234e-3;
    sum = sum * f + 9.618082557277852e-3;
    sum = sum * f + 5.550357114219078e-2;
    sum = sum * f + 2.4022650760568126e-1;
    sum = sum * f + 6.931471880262288e-1;
    return sum * f + 1.0;
}

// e^x for x <= 0.
fn exp_negative(x: f32) -> f32 {
    let whole = round(max(x, -200.0) * LOG2_E);
    let rest = (max(x, -200.0) - whole * 0.693359375) + whole * 2.1219444e-4;
    return exp2_fraction(rest * LOG2_E) * exp2_int(i32(whole));
}

// Cosine and sine of some quarter turns and an angle of at most pi/4, to about a unit in the last place.
fn turned(x: f32, quarters: i32) -> vec2f {
    let square = x * x;
    let sine = x + x * square * (-0.16666654611 + square * (8.3321608736e-3 + square * -1.9515295891e-4));
    let cosine = 1.0 - 0.5 * square
        + square * square * (4.166664568298827e-2 + square * (-1.388731625493765e-3 + square * 2.443315711809948e-5));
    switch quarters & 3 {
        case 0: {
            return vec2f(cosine, sine);
        }
        case 1: {
            return vec2f(-sine, cosine);
        }
        case 2: {
            return vec2f(-cosine, -sine);
        }
        default: {
            return vec2f(sine, -cosine);
        }
    }
}

// The outer product of the entries of 4 rows and of 4 columns; a column of the result belongs to a row.
fn outer(rows: vec4f, columns: vec4f) -> mat4x4f {
    return mat4x4f(rows.x * columns, rows.y * columns, rows.z * columns, rows.w * columns);
}
