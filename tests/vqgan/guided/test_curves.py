"""Numbers that change in time: their values at frames, and what is no curve."""

import math

import pytest

from vqgan_jax.guided import curves


@pytest.mark.parametrize(
    "text, values",
    [
        ("1.5", [1.5, 1.5, 1.5, 1.5]),
        ("(1:2, 3:-2)", [2.0, 2.0, 0.0, -2.0]),
        ("(2:0.5)", [0.5, 0.5, 0.5, 0.5]),
        ("1.02+0.01*sin(t)", [1.02 + 0.01 * math.sin(n / 10) for n in range(4)]),
        (" -n**2 % 5 / (1 + n)", [0.0, 4 / 2, 1 / 3, 1 / 4]),
        ("max(n, 1, 2*t) - min(1, sqrt(n))", [1.0, 0.0, 1.0, 2.0]),
        ("floor(pi*n) + ceil(t)", [0.0, 4.0, 7.0, 10.0]),
        ("abs(cos(pi*n)) + exp(log(2)) + tan(0) + sound", [3.25] * 4),
    ],
)
def test_values_at_frames(text, values):
    curve = curves.parse(text)
    assert [curve.at(frame, fps=10, sound=0.25) for frame in range(4)] == pytest.approx(values, rel=1e-15, abs=1e-15)


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 + foo(t)", r"character 5 \(at 'foo\(t\)'\): 'foo' is not a function; allowed are numbers, t, n, sound, pi, \+"),
        ("  2 * x", "character 7 .at 'x'.: 'x' is not a name; .* and the functions sin, cos"),
        ("1 + ", r"character \d \(.*this is not arithmetic"),
        ("", "character 1 .at the end.: this is not arithmetic"),
        ("sin(1, 2)", "character 1 .*: sin takes one number"),
        ("min(t)", "min takes two numbers or more"),
        ("sin(x=1)", "sin takes one number"),
        ("t.real", "character 1 .*'t.real' is not arithmetic"),
        ("(1).__class__", "is not arithmetic"),
        ("__import__('os')", "'__import__' is not a function"),
        ("sin(*[1])", "is not arithmetic"),
        ("n if t else 1", "is not arithmetic"),
        ("t < 1", "is not arithmetic"),
        ("True", "True is not a number"),
        ("1e99", "1e\\+99 is not a number of float32"),
        ("2j", "2j is not a number"),
        ("tü", "character 2 .at 'ü'.: 'ü' is not allowed"),
        ("1\n+1", r"character 2 .*'\\n' is not allowed"),
        ("-" * 201, "at most 200 characters"),
        ("(0:1, 0:2)", "the steps of keyframes must increase"),
        ("(0:1, 5:x)", "are not keyframes"),
    ],
)
def test_what_is_no_curve_is_refused(text, message):
    with pytest.raises(curves.CurveError, match=message):
        curves.parse(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("1/(n-2)", "has no value at frame 2: float division by zero"),
        ("9**9**9**9", "has no value at frame 2: "),
        ("(-n)**0.5", r"-2 \*\* 0.5 is not real"),
        ("log(-1)", "has no value at frame 2"),
        ("1e38*1e38*1e38*1e38*1e38*1e38*1e38*1e38*1e38", "is inf at frame 2"),
    ],
)
def test_values_that_are_no_finite_numbers_are_refused(text, message):
    with pytest.raises(curves.CurveError, match=message):
        curves.parse(text).at(2, fps=10)
    curves.parse("-" * 199 + "1").at(0, fps=10)  # deep expressions, too
