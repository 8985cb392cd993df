// Random words that are a function of a key and a position, with nothing in between: Philox4x64-10
// (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), word for word NumPy's np.random.Philox.
//
// A generator with a state gives its numbers one after another, so ten thousand threads would have to queue for them.
// Philox has none: it encrypts a counter of 4 words of 64 bits with a key of 2 words, in 10 rounds,
//
//     counter  c0   c1   c2   c3                       a round: two products of 64 x 64 bits, split in halves;
//               |    |    |    |                       their low halves move on as they are, their high halves
//             M0*c0  |  M1*c2  |                       are mixed with the odd words and the key, and all change
//             hi lo  |  hi lo  |                       places; the key grows by a constant from round to round
//     becomes  hi1^c1^k0  lo1  hi0^c3^k1  lo0
//
// and what comes out are 4 random words. So any thread computes any word, and the same word whoever asks.
//
// A stream is as ../philox.py has it: word i is number i % 4 of the block whose counter is (i / 4 + 1, 0, 0,
// stream). It is + 1 as NumPy counts first and encrypts then.
// A block is 20 products of 64 x 64 bits with both their halves, some 240 instructions of 32 bits: 60 for a word.

#pragma once

struct PhiloxBlock {
    unsigned long long w0, w1, w2, w3;
};

// Words 4*block .. 4*block + 3 of a stream.
__device__ __forceinline__ PhiloxBlock philox_block(unsigned long long key0, unsigned long long key1,
                                                    unsigned long long stream, unsigned long long block) {
    PhiloxBlock c = {block + 1, 0, 0, stream};
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned long long m0 = 0xD2E7470EE14C6C93ull, m1 = 0xCA5A826395121157ull;
        const unsigned long long high0 = __umul64hi(m0, c.w0), low0 = m0 * c.w0;
        const unsigned long long high1 = __umul64hi(m1, c.w2), low1 = m1 * c.w2;
        c = {high1 ^ c.w1 ^ key0, low1, high0 ^ c.w3 ^ key1, low0};
        key0 += 0x9E3779B97F4A7C15ull;  // the golden ratio's fraction, as 64 bits
        key1 += 0xBB67AE8584CAA73Bull;  // and that of the root of 3, less 1
    }
    return c;
}

// Word number i of a stream: words(key, stream, count)[i] of ../philox.py, for the key (key0, key1).
// One word costs as much as its block: who needs neighbours should take the block.
__device__ __forceinline__ unsigned long long philox_word(unsigned long long key0, unsigned long long key1,
                                                          unsigned long long stream, unsigned long long i) {
    const PhiloxBlock c = philox_block(key0, key1, stream, i / 4);
    const unsigned long long even = i & 2 ? c.w2 : c.w0, odd = i & 2 ? c.w3 : c.w1;
    return i & 1 ? odd : even;
}
