// Fours of inputs of a tile in 32 KB of workgroup memory.
const DEPTH = 16u;
