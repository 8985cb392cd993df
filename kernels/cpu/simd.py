"""Vectors and register tiles for Numba: what a compiled loop needs to use a processor's full width.

A processor multiplies 8 or 16 neighbouring float32 in one instruction, if they lie in one of its vector registers. The
compiler finds such code in simple loops, but not in a convolution, where a block of results must stay in registers
while thousands of products are added to it. So this file gives compiled functions two more kinds of value:

    Vector   LANES neighbouring values of an array. + - * work on it, and fuse into multiply-adds.
    Tile     rows x cols vectors: the results of `rows` pixels for cols*LANES channels, held in registers.

The product at the heart of every convolution, of `rows` pixels with the weights of a panel of channels, is then

    tile = tile_zeros(like, 8, 2)
    for k in range(length):
        tile = tile_add_product(tile, A, a + k, pixel_step, B, b + k * 2 * LANES)
    tile_store(tile, C, c, channels, valid)

Each step loads `cols` vectors of weights and `rows` single values, and does rows*cols vector multiply-adds: the larger
the tile, the less is loaded for each. It must fit into the registers, 32 with AVX-512 and 16 with AVX2.

How it works: Numba turns Python into LLVM's language, and LLVM has vectors of any length as a type. An @intrinsic is a
function that writes LLVM instructions itself; the ones below write loads, stores, splats (one value in all lanes) and
multiply-adds. LLVM cuts or joins the vectors to what the processor has, so nothing here is for one make of processor;
and the type takes its dtype from the array, so the same kernels run, and are tested, in float64.

Arrays are flat and C-contiguous, positions are counted in values, and nothing checks them: a wrong one crashes the
process. The ops check shapes before any kernel is called.
"""

import operator

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

# As the processor has, unless Numba is told to do without: NUMBA_CPU_NAME=znver3 NUMBA_CPU_FEATURES=+avx2,+fma,-avx512f
_WIDE = (llvmlite.binding.get_host_cpu_features().get("avx512f", False)
         and "-avx512f" not in (numba.config.CPU_FEATURES or ""))
LANES = 16 if _WIDE else 8
_MASK = ir.VectorType(ir.IntType(1), LANES)
WIDTH = 2 * LANES  # of a tile with two vectors a row: so many channels at a time
ROWS = 8 if _WIDE else 6  # of the largest tile with two vectors a row: 8*2 + 2 + 1 of 32 registers, 6*2 + 2 + 1 of 16


class Vector(types.Type):
    """LANES values of a dtype."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype}, {LANES})")


class Tile(types.Type):
    """rows x cols vectors of a dtype."""

    def __init__(self, dtype, rows, cols):
        self.dtype, self.rows, self.cols = dtype, rows, cols
        super().__init__(name=f"Tile({dtype}, {LANES}, {rows}, {cols})")


def _llvm(dtype):
    return ir.VectorType(ir.FloatType() if dtype == types.float32 else ir.DoubleType(), LANES)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _llvm(kind.dtype))


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.LiteralStructType([_llvm(kind.dtype)] * (kind.rows * kind.cols)))


# ---- vectors ----


@intrinsic
def load(typing, array, i):
    """The vector array[i : i + LANES]."""

    def code(context, builder, signature, args):
        return _load(builder, _at(context, builder, signature.args[0], *args), _llvm(array.dtype))

    return Vector(array.dtype)(array, types.intp), code


@intrinsic
def store(typing, array, i, vector):
    """array[i : i + LANES] = vector."""

    def code(context, builder, signature, args):
        _store(builder, args[2], _at(context, builder, signature.args[0], *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def load_some(typing, array, i, valid):
    """The vector of array[i : i + valid] and zeros; a valid of LANES or more loads all."""

    def code(context, builder, signature, args):
        kind, place = _llvm(array.dtype), _at(context, builder, signature.args[0], *args[:2])
        masked = _masked(builder, "load", kind, [kind.as_pointer(), ir.IntType(32), _MASK, kind])
        return builder.call(masked, [builder.bitcast(place, kind.as_pointer()), ir.Constant(ir.IntType(32), 4),
                                     _mask(builder, args[2]), ir.Constant(kind, None)])

    return Vector(array.dtype)(array, types.intp, types.intp), code


@intrinsic
def store_some(typing, array, i, vector, valid):
    """array[i : i + valid] = vector; a valid of LANES or more stores all."""

    def code(context, builder, signature, args):
        kind, place = _llvm(array.dtype), _at(context, builder, signature.args[0], *args[:2])
        masked = _masked(builder, "store", ir.VoidType(), [kind, kind.as_pointer(), ir.IntType(32), _MASK], kind)
        builder.call(masked, [args[2], builder.bitcast(place, kind.as_pointer()), ir.Constant(ir.IntType(32), 4),
                              _mask(builder, args[3])])
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.intp), code


@intrinsic
def prefetch(typing, array, i):
    """Asks for the line of memory with array[i] to be brought into the second cache; the program does not wait."""

    def code(context, builder, signature, args):
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.bitcast(_at(context, builder, signature.args[0], *args), byte)
        function = _intrinsic(builder, "llvm.prefetch.p0i8", ir.VoidType(), [byte, number, number, number])
        builder.call(function, [place, *(ir.Constant(number, value) for value in (0, 2, 1))])  # read, level 2, data
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@intrinsic
def zeros(typing, array):
    """A vector of zeros with the array's dtype."""
    return Vector(array.dtype)(array), lambda context, builder, *_: ir.Constant(_llvm(array.dtype), None)


def _arithmetic(symbol, instruction):
    """Let `symbol` work on two vectors, or on a number and a vector."""

    @intrinsic
    def both(typing, x, y):
        kind = x if isinstance(x, Vector) else y

        def code(context, builder, signature, args):
            values = [value if isinstance(given, Vector) else
                      _splat(builder, context.cast(builder, value, given, kind.dtype), _llvm(kind.dtype))
                      for value, given in zip(args, signature.args, strict=True)]
            return getattr(builder, instruction)(*values)

        return kind(x, y), code

    @overload(symbol)
    def _(x, y):
        kinds = [isinstance(one, (Vector, types.Number)) for one in (x, y)]
        if all(kinds) and (isinstance(x, Vector) or isinstance(y, Vector)):
            return lambda x, y: both(x, y)


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")


# ---- tiles ----


@intrinsic(prefer_literal=True)
def tile_zeros(typing, array, rows, cols):
    """A tile of zeros with the array's dtype; rows and cols are constants of the program."""
    kind = Tile(array.dtype, rows.literal_value, cols.literal_value)
    return kind(array, rows, cols), lambda context, *_: ir.Constant(context.get_value_type(kind), None)


@intrinsic
def tile_width(typing, tile):
    """cols*LANES, as a constant."""
    return types.intp(tile), lambda *_: _int(tile.cols * LANES)


@intrinsic
def tile_load(typing, tile, array, i, step, valid):
    """A tile like `tile`, row r from array[i + r*step : + valid] and zeros; valid is 1 to cols*LANES."""

    def code(context, builder, signature, args):
        new, kind = args[0], _llvm(tile.dtype)
        load = _masked(builder, "load", kind, [kind.as_pointer(), ir.IntType(32), _MASK, kind])
        for number, place, mask in _places(context, builder, tile, signature.args[1], *args[1:]):
            vector = builder.call(load, [place, ir.Constant(ir.IntType(32), 4), mask, ir.Constant(kind, None)])
            new = builder.insert_value(new, vector, number)
        return new

    return tile(tile, array, types.intp, types.intp, types.intp), code


@intrinsic
def tile_add_product(typing, tile, A, a, step, B, b):
    """tile[r, c] += A[a + r*step] * B[b + c*LANES : + LANES]: one step of the outer product of pixels and channels."""

    def code(context, builder, signature, args):
        sums, A_, a_, step_, B_, b_ = args
        kind, first = _llvm(tile.dtype), _at(context, builder, signature.args[4], B_, b_)
        weights = [_load(builder, builder.gep(first, [_int(c * LANES)]), kind) for c in range(tile.cols)]
        for r in range(tile.rows):
            place = _at(context, builder, signature.args[1], A_, builder.add(a_, builder.mul(step_, _int(r))))
            value = _splat(builder, builder.load(place, align=4), kind)
            for c in range(tile.cols):
                number = r * tile.cols + c
                sums = builder.insert_value(
                    sums, _multiply_add(builder, value, weights[c], builder.extract_value(sums, number)), number)
        return sums

    return tile(tile, A, types.intp, types.intp, B, types.intp), code


@intrinsic
def tile_store(typing, tile, array, i, step, valid):
    """array[i + r*step : + valid] = row r of the tile; valid is 1 to cols*LANES."""

    def code(context, builder, signature, args):
        kind = _llvm(tile.dtype)
        store = _masked(builder, "store", ir.VoidType(), [kind, kind.as_pointer(), ir.IntType(32), _MASK], kind)
        for number, place, mask in _places(context, builder, tile, signature.args[1], *args[1:]):
            vector = builder.extract_value(args[0], number)
            builder.call(store, [vector, place, ir.Constant(ir.IntType(32), 4), mask])
        return context.get_dummy_value()

    return types.void(tile, array, types.intp, types.intp, types.intp), code


# ---- tiles as small matrices of vectors ----


@intrinsic(prefer_literal=True)
def grid_load(typing, array, i, row_step, step, rows, cols):
    """The tile of vectors array[i + r*row_step + c*step : + LANES]; rows and cols are constants of the program."""
    kind = Tile(array.dtype, rows.literal_value, cols.literal_value)

    def code(context, builder, signature, args):
        tile = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for number, place in _grid(context, builder, kind, signature.args[0], *args[:4]):
            tile = builder.insert_value(tile, _load(builder, place, _llvm(kind.dtype)), number)
        return tile

    return kind(array, types.intp, types.intp, types.intp, rows, cols), code


@intrinsic
def grid_store(typing, tile, array, i, row_step, step):
    """array[i + r*row_step + c*step : + LANES] = the tile's vectors."""

    def code(context, builder, signature, args):
        for number, place in _grid(context, builder, tile, signature.args[1], *args[1:]):
            _store(builder, builder.extract_value(args[0], number), place)
        return context.get_dummy_value()

    return types.void(tile, array, types.intp, types.intp, types.intp), code


def on_both_sides(matrix):
    """The function that turns a tile D of n x n vectors into M D M^T, for a matrix M (m, n) of numbers.

    Its code is written out from M: no multiplication by 0 or 1, and what two rows or two columns that differ in signs
    have in common is computed once.
    """
    matrix = np.asarray(matrix, np.float64)
    m, n = matrix.shape

    @intrinsic
    def both_sides(typing, tile):
        kind = Tile(tile.dtype, m, m)

        def code(context, builder, signature, args):
            vectors = [[builder.extract_value(args[0], r * n + c) for r in range(n)] for c in range(n)]
            columns = [_product(builder, matrix, column) for column in vectors]
            out = ir.Constant(context.get_value_type(kind), ir.Undefined)
            for r in range(m):
                for c, vector in enumerate(_product(builder, matrix, [column[r] for column in columns])):
                    out = builder.insert_value(out, vector, r * m + c)
            return out

        return kind(tile), code

    return both_sides


def _product(builder, matrix, vectors):
    """The vectors sum_c matrix[r, c] * vectors[c], one for each r."""
    terms = [[(factor, vector) for factor, vector in zip(row, vectors, strict=True) if factor] for row in matrix]
    for c, k in _sign_pairs(matrix.T):  # a*x + b*y is a*(x + y) or a*(x - y)
        plus, minus = builder.fadd(vectors[c], vectors[k]), builder.fsub(vectors[c], vectors[k])
        for r, row in enumerate(matrix):
            if row[c]:
                kept = [term for term in terms[r] if term[1] is not vectors[c] and term[1] is not vectors[k]]
                terms[r] = [*kept, (row[c], plus if row[c] == row[k] else minus)]
    out = [None] * len(matrix)
    for r, k in _sign_pairs(matrix):  # the sums of the terms with equal and with opposite signs
        equal = [(f, v) for f, g, v in zip(matrix[r], matrix[k], vectors, strict=True) if f and f == g]
        opposite = [(f, v) for f, g, v in zip(matrix[r], matrix[k], vectors, strict=True) if f and f != g]
        even, odd = _sum(builder, equal), _sum(builder, opposite)
        out[r], out[k] = builder.fadd(even, odd), builder.fsub(even, odd)
    return [_sum(builder, term) if vector is None else vector for term, vector in zip(terms, out, strict=True)]


def _sign_pairs(matrix):
    """Pairs of neighbouring rows that are equal but for signs, of which some but not all differ."""
    return [(r, r + 1) for r in range(len(matrix) - 1) if np.array_equal(abs(matrix[r]), abs(matrix[r + 1]))
            and 0 < np.count_nonzero(matrix[r] != matrix[r + 1]) < np.count_nonzero(matrix[r])]


def _sum(builder, terms):
    """The vector sum of factor*vector over the terms."""
    terms = sorted(terms, key=lambda term: abs(term[0]) != 1)
    factor, vector = terms[0]
    total = vector if factor == 1 else builder.fmul(_constant(factor, vector.type), vector)
    for factor, vector in terms[1:]:
        if abs(factor) == 1:
            total = builder.fadd(total, vector) if factor == 1 else builder.fsub(total, vector)
        else:
            total = _multiply_add(builder, _constant(factor, vector.type), vector, total)
    return total


# ---- LLVM instructions ----


def _int(value):
    return ir.Constant(ir.IntType(64), value)


def _at(context, builder, kind, array, i):
    """Pointer to array[i]."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [i])


def _places(context, builder, tile, kind, array, i, step, valid):
    """(number, pointer, mask of the valid lanes) of each vector of a tile that lies in an array."""
    masks = [_mask(builder, valid, c * LANES) for c in range(tile.cols)]
    for r in range(tile.rows):
        row = _at(context, builder, kind, array, builder.add(i, builder.mul(step, _int(r))))
        for c in range(tile.cols):
            place = builder.bitcast(builder.gep(row, [_int(c * LANES)]), _llvm(tile.dtype).as_pointer())
            yield r * tile.cols + c, place, masks[c]


def _grid(context, builder, tile, kind, array, i, row_step, step):
    """(number, pointer) of each vector of a tile whose rows and columns lie so many values apart."""
    for r in range(tile.rows):
        for c in range(tile.cols):
            place = builder.add(i, builder.add(builder.mul(row_step, _int(r)), builder.mul(step, _int(c))))
            yield r * tile.cols + c, _at(context, builder, kind, array, place)


def _constant(value, kind):
    """The number in all lanes."""
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * LANES)


def _mask(builder, valid, first=0):
    """For each lane whether its number, counted from `first`, is below `valid`."""
    integers = ir.VectorType(ir.IntType(64), LANES)
    lanes = ir.Constant(integers, [first + lane for lane in range(LANES)])
    return builder.icmp_signed("<", lanes, _splat(builder, valid, integers))


def _load(builder, place, kind):
    return builder.load(builder.bitcast(place, kind.as_pointer()), align=4)


def _store(builder, vector, place):
    builder.store(vector, builder.bitcast(place, vector.type.as_pointer()), align=4)


def _splat(builder, value, kind):
    """The value in all lanes."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _multiply_add(builder, x, y, z):
    function = _intrinsic(builder, f"llvm.fmuladd.{_name(x.type)}", x.type, [x.type] * 3)
    return builder.call(function, [x, y, z])


def _masked(builder, what, result, parameters, kind=None):
    return _intrinsic(builder, f"llvm.masked.{what}.{_name(kind or result)}.p0{_name(kind or result)}", result,
                      parameters)


def _name(kind):
    return f"v{LANES}f{32 if isinstance(kind.element, ir.FloatType) else 64}"


def _intrinsic(builder, name, result, parameters):
    module = builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, parameters), name)
