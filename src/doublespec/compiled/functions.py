"""Elementary functions of float32, a number or LANES of them, by sums of their series."""

from doublespec.compiled.code import Code, Number

_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440054690583e-4
_FACTORIALS = (5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0)  # of 7 down to 0
_ROUNDER = 12582912.0  # 1.5 x 2^23: a number added to it is rounded, and stands in the last bits
_LOWEST, _HIGHEST = -87.0, 88.0  # of which e^x is a normal float32
_ODD = (9.0, 7.0, 5.0, 3.0)
_SQRT2 = 1.4142135623730951
_FRACTION, _ONE, _BIAS = 0x7FFFFF, 0x3F800000, 127  # of float32: its last bits, 1.0, exponent of 1


def exp(code: Code, x: Number) -> Number:
    """e^x as 2^n x e^r, where r is at most half of log 2: a Taylor polynomial, right to the last
    bit or two. What is beyond float32 is taken for the last that is not."""
    x = (x < _LOWEST).then(x.like(_LOWEST), x)
    x = (x > _HIGHEST).then(x.like(_HIGHEST), x)
    shifted = code.fma(x, x.like(_LOG2E), x.like(_ROUNDER))
    n = shifted - _ROUNDER
    r = code.fma(n, n.like(-_LN2_HIGH), x)
    r = code.fma(n, n.like(-_LN2_LOW), r)
    power = r.like(1 / _FACTORIALS[0])
    for factorial in _FACTORIALS[1:]:
        power = code.fma(power, r, r.like(1 / factorial))
    exponent = code.shifted(code.as_words(shifted), 23)
    return code.from_words(code.as_words(power) + exponent)


def log(code: Code, x: Number) -> Number:
    """The natural logarithm of LANES positive normal numbers, right to the last bit or two: of
    x = 2^n x m, m between the roots of 1/2 and 2, by log m = 2 artanh s, where s = f / (m + 1) and
    f = m - 1, written as f - s (f - 2 (s^2 / 3 + s^4 / 5 + ...)): f is exact."""
    bits = code.as_words(x)
    m = code.from_words((bits & _FRACTION) | _ONE)
    is_high = m > _SQRT2
    m = is_high.then(m * 0.5, m)
    n = code.floats(code.shifted_right(bits, 23) - _BIAS)
    n = is_high.then(n + 1.0, n)
    f = m - 1.0
    s = f / (m + 1.0)
    square = s * s
    series = s.like(1 / _ODD[0])
    for odd in _ODD[1:]:
        series = code.fma(series, square, s.like(1 / odd))
    rest = f - (square + square) * series
    small = code.fma(n, n.like(_LN2_LOW), code.fma(s.like(0.0) - s, rest, f))
    return code.fma(n, n.like(_LN2_HIGH), small)
