"""Small functions with holes for names, and what is known of them: types and purpose."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A function with holes for names: `$a $b $c` are parameters, `$x $y` local names."""

    kinds: str
    returns: str
    doc: str
    body: str


SKELETONS = [
    Skeleton(
        "list[float]",
        "float",
        "Return the sum of $a.",
        """
    $x = 0.0
    for $y in $a:
        $x += $y
    return $x""",
    ),
    Skeleton(
        "list[float], float",
        "float",
        "Return the sum of $a times $b.",
        """
    $x = sum($a)
    return $x * $b""",
    ),
    Skeleton(
        "list[int], int",
        "list[int]",
        "Return the numbers of $a above $b.",
        """
    $x = []
    for $y in $a:
        if $y > $b:
            $x.append($y)
    return $x""",
    ),
    Skeleton(
        "list[int]",
        "int",
        "Return the largest number of $a.",
        """
    $x = $a[0]
    for $y in $a:
        if $y > $x:
            $x = $y
    return $x""",
    ),
    Skeleton(
        "list[int]",
        "int",
        "Return the smallest number of $a.",
        """
    $x = $a[0]
    for $y in $a:
        if $y < $x:
            $x = $y
    return $x""",
    ),
    Skeleton(
        "list[str]",
        "dict[str, int]",
        "Count how often each item of $a occurs.",
        """
    $x = {}
    for $y in $a:
        $x[$y] = $x.get($y, 0) + 1
    return $x""",
    ),
    Skeleton(
        "list[float]",
        "float",
        "Return the mean of $a.",
        """
    $x = sum($a)
    return $x / len($a)""",
    ),
    Skeleton(
        "str",
        "str",
        "Return $a without spaces and in lower case.",
        """
    $x = $a.strip()
    return $x.lower().replace(" ", "")""",
    ),
    Skeleton(
        "str",
        "int",
        "Count the words of $a.",
        """
    $x = $a.split()
    return len($x)""",
    ),
    Skeleton(
        "str, str",
        "str",
        "Join $a and $b with a space.",
        """
    $x = $a + " " + $b
    return $x.strip()""",
    ),
    Skeleton(
        "list[str], str",
        "list[str]",
        "Return the items of $a that start with $b.",
        """
    return [$x for $x in $a if $x.startswith($b)]""",
    ),
    Skeleton(
        "list[str]",
        "list[str]",
        "Return $a without repeated items.",
        """
    $x = set()
    $y = []
    for item in $a:
        if item not in $x:
            $x.add(item)
            $y.append(item)
    return $y""",
    ),
    Skeleton(
        "int, int",
        "int",
        "Return the larger of $a and $b.",
        """
    if $a > $b:
        return $a
    return $b""",
    ),
    Skeleton(
        "int",
        "bool",
        "Tell whether $a is even.",
        """
    $x = $a % 2
    return $x == 0""",
    ),
    Skeleton(
        "int",
        "int",
        "Return the product of the numbers from 1 to $a.",
        """
    $x = 1
    for $y in range(1, $a + 1):
        $x *= $y
    return $x""",
    ),
    Skeleton(
        "float, float",
        "float",
        "Return $a reduced by $b percent.",
        """
    $x = $a * $b / 100
    return $a - $x""",
    ),
    Skeleton(
        "float, float, float",
        "float",
        "Keep $a between $b and $c.",
        """
    if $a < $b:
        return $b
    if $a > $c:
        return $c
    return $a""",
    ),
    Skeleton(
        "dict[str, int], str",
        "int",
        "Look up $b in $a, or return 0.",
        """
    if $b in $a:
        return $a[$b]
    return 0""",
    ),
    Skeleton(
        "str",
        "list[str]",
        "Read the lines of the file $a.",
        """
    with open($a) as $x:
        $y = $x.read()
    return $y.splitlines()""",
    ),
    Skeleton(
        "str, list[str]",
        "None",
        "Write the lines $b to the file $a.",
        """
    with open($a, "w") as $x:
        for $y in $b:
            $x.write($y + "\\n")""",
    ),
    Skeleton(
        "list[int]",
        "list[int]",
        "Return $a in reverse order.",
        """
    $x = []
    for $y in $a:
        $x.insert(0, $y)
    return $x""",
    ),
    Skeleton(
        "list[int], int",
        "int",
        "Return the position of $b in $a, or -1.",
        """
    for $x, $y in enumerate($a):
        if $y == $b:
            return $x
    return -1""",
    ),
    Skeleton(
        "float, float",
        "float",
        "Return the area of a rectangle $a by $b.",
        """
    $x = $a * $b
    return round($x, 2)""",
    ),
    Skeleton(
        "list[str]",
        "str",
        "Return the longest item of $a.",
        """
    $x = ""
    for $y in $a:
        if len($y) > len($x):
            $x = $y
    return $x""",
    ),
    Skeleton(
        "int, int",
        "list[int]",
        "Return the squares from $a to $b.",
        """
    $x = []
    while $a <= $b:
        $x.append($a * $a)
        $a += 1
    return $x""",
    ),
    Skeleton(
        "str",
        "str",
        "Return $a read backwards.",
        """
    $x = ""
    for $y in $a:
        $x = $y + $x
    return $x""",
    ),
    Skeleton(
        "list[str], list[int]",
        "dict[str, int]",
        "Pair the items of $a with those of $b.",
        """
    $x = {}
    for $y, value in zip($a, $b):
        $x[$y] = value
    return $x""",
    ),
    Skeleton(
        "int, int",
        "int",
        "Return the greatest common divisor of $a and $b.",
        """
    while $b:
        $a, $b = $b, $a % $b
    return $a""",
    ),
    Skeleton(
        "str, int",
        "str",
        "Repeat $a $b times.",
        """
    $x = []
    for $y in range($b):
        $x.append($a)
    return "".join($x)""",
    ),
    Skeleton(
        "list[int]",
        "int",
        "Count the even numbers of $a.",
        """
    $x = 0
    for $y in $a:
        if $y % 2 == 0:
            $x += 1
    return $x""",
    ),
    Skeleton(
        "float",
        "float",
        "Turn $a from degrees Celsius to Fahrenheit.",
        """
    $x = $a * 9 / 5
    return $x + 32""",
    ),
    Skeleton(
        "str, str",
        "bool",
        "Tell whether $b occurs in $a, whatever the case.",
        """
    $x = $a.lower()
    return $b.lower() in $x""",
    ),
]
