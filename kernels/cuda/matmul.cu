// The matrix product c = op(a) op(b), op(m) being m or its transpose: rows x inner times inner x columns.
//
// A block computes one tile of c. It walks along `inner` in steps of DEPTH: brings the two strips of a and b that the
// step needs into shared memory, then every thread takes from there what its own little tile needs, in registers.
//
//                         b   . . |=====| . .   DEPTH of its rows        for each step along inner        (a block)
//                                 | COLUMNS                                  fetch the next strips into registers
//                                                                            for each k of DEPTH          (a thread)
//     a   DEPTH           c   . . . . . . . .                                    x = EACH_ROWS values of a's strip
//     . ---------- .      .   . . +-----+ . .                                    y = EACH_COLUMNS values of b's strip
//     . |  ROWS  | .      .   . . | tile| . .                                    sums += x times y, each with each
//     . ---------- .      .   . . +-----+ . .                                put the next strips into shared memory
//
// Why so: every multiplication needs two numbers, and reading both from memory would give 2 operations for 8 bytes. A
// tile uses each number of its strips COLUMNS or ROWS times: 2*ROWS*COLUMNS operations for (ROWS + COLUMNS)*b bytes,
// for 128 x 128 floats 32 operations a byte; the same once more between shared memory and registers: 8 x 8 sums take 64
// multiplications for 16 numbers read. An H100 does 67 TFLOP/s in float and reads 3.35 TB/s: from 20 operations a byte
// on, arithmetic is the limit (the ridge of the roofline), below it memory is. The product as a whole has
//
//     2*rows*columns*inner operations,   b*(rows*inner + inner*columns + rows*columns) bytes at least
//
// so with many rows and few columns it is about columns/2 operations a byte in float: 16 columns (the first stage of
// ResNet-20) are a memory's job, 64 are past the ridge. Nothing of this has been measured here.
//
// The three products of a convolution, M pixels, K output channels, L = R*S*C/G, one group:
//     y (M,K) = columns (M,L) w^T             rows M, columns K, inner L       b transposed
//     dcolumns (M,L) = g (M,K) w (K,L)        rows M, columns L, inner K
//     dw^T (L,K) = columns^T (L,M) g (M,K)    rows L, columns K, inner M       a transposed
// blockIdx.z is the group: its matrices begin z * stride further on. The last product has a tiny result and an inner
// dimension of 100,000: one tile would keep one multiprocessor busy. So inner is cut into parts of `part` (blockIdx.z
// counts them too), each part leaves its own sum, and sum_partials adds them up in double, in the order of the parts.
// Which part is how long depends on the shapes alone, so every run, on every device, gives the same bits; that is why
// no atomicAdd is here. Within a part a value of c is the sum over k in ascending order, whatever the tile's size.

#include "pack.cuh"

enum TileName { LARGE, MEDIUM, NARROW };  // matmul.py says which is taken when; all have 256 threads

// DEPTH counts in moves of 16 bytes. BLOCKS: so many of them shall be on a multiprocessor at a time, so that one
// computes while another waits at a barrier; a thread may then have 65536 / (256 * BLOCKS) registers (of float; double
// takes twice as many for the same tile and is content with one block).
template <TileName>
struct Tile;
template <>
struct Tile<LARGE> {
    static constexpr int ROWS = 128, COLUMNS = 128, EACH_ROWS = 8, EACH_COLUMNS = 8, DEPTH = 2, BLOCKS = 2;
};
template <>
struct Tile<MEDIUM> {
    static constexpr int ROWS = 128, COLUMNS = 64, EACH_ROWS = 8, EACH_COLUMNS = 4, DEPTH = 4, BLOCKS = 2;
};
template <>
struct Tile<NARROW> {
    static constexpr int ROWS = 128, COLUMNS = 32, EACH_ROWS = 4, EACH_COLUMNS = 4, DEPTH = 4, BLOCKS = 3;
};

// One strip on its way into shared memory: SIDE rows of a (or columns of b) times DEPTH, in pieces of 16 bytes along
// the direction in which the matrix lies in memory: along inner, or along the side. It waits in registers while the
// block computes with the strip before it, so that the time a load takes is hidden behind arithmetic.
// In shared memory it is always tile[k][side], which the inner loop reads 16 bytes at a time; the V values that each
// row is longer move the pieces of a column into different banks.
template <typename T, int SIDE, int DEPTH, bool ALONG_SIDE>
struct Strip {
    static constexpr int V = 16 / sizeof(T), PIECES = SIDE * DEPTH / V, OWN = (PIECES + 255) / 256;
    Pack<T, V> pieces[OWN];

    __device__ __forceinline__ static int side(int piece) {
        return ALONG_SIDE ? piece % (SIDE / V) * V : piece / (DEPTH / V);
    }
    __device__ __forceinline__ static int depth(int piece) {
        return ALONG_SIDE ? piece / (SIDE / V) : piece % (DEPTH / V) * V;
    }

    // Rows (or columns) from `first` on of `sides`, inner from k to `end`; zeros beyond, which add nothing.
    __device__ __forceinline__ void fetch(const T* __restrict__ matrix, int ld, int first, int sides, int k, int end,
                                          bool aligned) {
#pragma unroll
        for (int own = 0; own < OWN; own++) {
            const int piece = own * 256 + threadIdx.x, i = first + side(piece), j = k + depth(piece);
            const int fast = ALONG_SIDE ? i : j, slow = ALONG_SIDE ? j : i;
            const int fast_end = ALONG_SIDE ? sides : end, slow_end = ALONG_SIDE ? end : sides;
            pieces[own] = {};
            if (piece < PIECES && slow < slow_end) {
                const T* from = matrix + slow * ld + fast;
                if (aligned && fast + V <= fast_end) {
                    pieces[own] = load<V>(from, true);
                } else {
#pragma unroll
                    for (int v = 0; v < V; v++)
                        if (fast + v < fast_end) pieces[own].v[v] = from[v];
                }
            }
        }
    }

    __device__ __forceinline__ void put(T (*tile)[SIDE + V]) const {
#pragma unroll
        for (int own = 0; own < OWN; own++) {
            const int piece = own * 256 + threadIdx.x;
            if (piece < PIECES) {
                if (ALONG_SIDE) {
                    store(&tile[depth(piece)][side(piece)], pieces[own], true);
                } else {
#pragma unroll
                    for (int v = 0; v < V; v++) tile[depth(piece) + v][side(piece)] = pieces[own].v[v];
                }
            }
        }
    }
};

// lda, ldb, ldc: values from one line of the matrix in memory to the next; stride_*: from one group to the next (of c:
// from one blockIdx.z to the next, as the partial sums of all parts lie one after another). `part` is a multiple of 16.
// With `add`, c keeps what it has and the product is added to it.
template <typename T, TileName NAME, bool A_TRANSPOSED, bool B_TRANSPOSED>
__global__ void __launch_bounds__(256, sizeof(T) == 4 ? Tile<NAME>::BLOCKS : 1)
matmul(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ c, int rows, int columns, int inner, int lda,
       int ldb, int ldc, int stride_a, int stride_b, int stride_c, int groups, int part, int add) {
    constexpr int V = 16 / sizeof(T), DEPTH = Tile<NAME>::DEPTH * V;
    constexpr int ROWS = Tile<NAME>::ROWS, COLUMNS = Tile<NAME>::COLUMNS;
    constexpr int EACH_ROWS = Tile<NAME>::EACH_ROWS, EACH_COLUMNS = Tile<NAME>::EACH_COLUMNS;
    constexpr int THREADS_DOWN = ROWS / EACH_ROWS, THREADS_ACROSS = COLUMNS / EACH_COLUMNS;
    static_assert(THREADS_DOWN * THREADS_ACROSS == 256, "a tile is 256 threads' work");
    __shared__ __align__(16) T tile_a[DEPTH][ROWS + V];
    __shared__ __align__(16) T tile_b[DEPTH][COLUMNS + V];

    const int group = blockIdx.z % groups, across = (columns + COLUMNS - 1) / COLUMNS;
    const int row0 = blockIdx.x / across * ROWS, column0 = blockIdx.x % across * COLUMNS;  // neighbours share a's rows
    a += group * stride_a;
    b += group * stride_b;
    c += blockIdx.z * stride_c;
    const bool aligned_a = is_aligned(a) && lda % V == 0, aligned_b = is_aligned(b) && ldb % V == 0;
    const int begin = blockIdx.z / groups * part, end = inner - begin < part ? inner : begin + part;

    Strip<T, ROWS, DEPTH, A_TRANSPOSED> strip_a;
    Strip<T, COLUMNS, DEPTH, !B_TRANSPOSED> strip_b;
    strip_a.fetch(a, lda, row0, rows, begin, end, aligned_a);
    strip_b.fetch(b, ldb, column0, columns, begin, end, aligned_b);
    // A thread's sums are not one square but pieces of V: the pieces of neighbouring threads are neighbours, so a warp
    // reads shared memory without two threads asking the same bank for different words.
    const int down = threadIdx.x / THREADS_ACROSS * V, right = threadIdx.x % THREADS_ACROSS * V;
    T sums[EACH_ROWS][EACH_COLUMNS] = {};

    for (int k0 = begin; k0 < end; k0 += DEPTH) {
        strip_a.put(tile_a);
        strip_b.put(tile_b);
        __syncthreads();  // the strips are there
        if (k0 + DEPTH < end) {
            strip_a.fetch(a, lda, row0, rows, k0 + DEPTH, end, aligned_a);
            strip_b.fetch(b, ldb, column0, columns, k0 + DEPTH, end, aligned_b);
        }
#pragma unroll 2  // more, and the compiler asks for more registers than BLOCKS leaves it
        for (int k = 0; k < DEPTH; k++) {
            Pack<T, V> x[EACH_ROWS / V], y[EACH_COLUMNS / V];
#pragma unroll
            for (int i = 0; i < EACH_ROWS / V; i++) x[i] = load<V>(&tile_a[k][i * THREADS_DOWN * V + down], true);
#pragma unroll
            for (int j = 0; j < EACH_COLUMNS / V; j++)
                y[j] = load<V>(&tile_b[k][j * THREADS_ACROSS * V + right], true);
#pragma unroll
            for (int i = 0; i < EACH_ROWS; i++)
#pragma unroll
                for (int j = 0; j < EACH_COLUMNS; j++) sums[i][j] += x[i / V].v[i % V] * y[j / V].v[j % V];
        }
        __syncthreads();  // no thread needs them any more
    }

    const bool aligned_c = is_aligned(c) && ldc % V == 0;
#pragma unroll
    for (int i = 0; i < EACH_ROWS; i++) {
        const int row = row0 + i / V * THREADS_DOWN * V + down + i % V;
#pragma unroll
        for (int j = 0; j < EACH_COLUMNS; j += V) {
            const int column = column0 + j * THREADS_ACROSS + right, there = columns - column;
            T* to = c + row * ldc + column;
            if (row < rows && there >= V && aligned_c && !add) {
                Pack<T, V> piece;
#pragma unroll
                for (int v = 0; v < V; v++) piece.v[v] = sums[i][j + v];
                store(to, piece, true);
            } else if (row < rows) {
#pragma unroll
                for (int v = 0; v < V; v++)
                    if (v < there) to[v] = add ? to[v] + sums[i][j + v] : sums[i][j + v];
            }
        }
    }
}

// total (groups, L, K) = [total +] the sum over the parts of partials (parts, groups, L, K), in double;
// dw (groups, K, L) = total, transposed and rounded to T. 32 x 8 threads have 32 values: each of the 8 adds every
// eighth part, then the first adds the eight sums in order. So the loads of many parts are on their way at a time.
template <typename T>
__global__ void __launch_bounds__(256)
sum_partials(const T* __restrict__ partials, double* total, T* dw, int parts, int groups, int L, int K, int add) {
    __shared__ double sums[8][32];
    const int x = threadIdx.x, y = threadIdx.y, size = groups * L * K, i = blockIdx.x * 32 + x;
    double sum = 0;
    if (i < size)
        for (int part = y; part < parts; part += 8) sum += partials[part * size + i];
    sums[y][x] = sum;
    __syncthreads();
    if (y == 0 && i < size) {
        sum = add ? total[i] : 0;
        for (int other = 0; other < 8; other++) sum += sums[other][x];
        total[i] = sum;
        const int k = i % K, l = i / K % L, group = i / K / L;
        dw[(group * K + k) * L + l] = sum;
    }
}
