// The rows of a pool are cut into blocks, so that a long sequence is many invocations' work and no sum is a long one.

const MEAN = 0u;
const MAX = 1u;
const ATTENTION = 2u;
const BLOCK = 256u;

// Some rows of a pool.
struct Block {
    kind: u32,
    first: u32,
    count: u32,
    query: u32,
}
