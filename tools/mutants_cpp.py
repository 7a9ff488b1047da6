"""Mutants of a C++ source: small changes of its syntax tree, none of them in comments, includes, texts or messages.

Rules over lines (universalmutator) were tried first: of 1294 mutants of one file of 162 lines 377 did not parse and 276
more put a `break` or `continue` behind each line, and each of them costs a compilation. The tree knows that a `<` is no
bracket and a `*` no pointer.
"""

import dataclasses

import tree_sitter
import tree_sitter_cpp

PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_cpp.language()))

# Boundary and opposite of what compares, a neighbour of what counts.
BINARY = {
    "<": ["<=", ">="],
    "<=": ["<", ">"],
    ">": [">=", "<="],
    ">=": [">", "<"],
    "==": ["!="],
    "!=": ["=="],
    "&&": ["||"],
    "||": ["&&"],
    "+": ["-"],
    "-": ["+"],
    "*": ["+"],
    "/": ["*"],
    "%": ["+"],
    "&": ["|"],
    "|": ["&"],
    "^": ["&"],
    "<<": [">>"],
    ">>": ["<<"],
}
ASSIGNMENT = {
    "+=": ["-="],
    "-=": ["+="],
    "*=": ["/="],
    "/=": ["*="],
    "|=": ["&="],
    "&=": ["|="],
    "^=": ["|="],
    "<<=": [">>="],
    ">>=": ["<<="],
}
NAMES = {"min": ["max"], "max": ["min"], "any_of": ["all_of"], "all_of": ["any_of"], "none_of": ["all_of"]}

# Nothing below these is mutated. What a `throw` throws is a message; that it throws is not.
SKIPPED = {
    "ERROR",
    "comment",
    "string_literal",
    "raw_string_literal",
    "char_literal",
    "preproc_include",
    "preproc_def",
    "preproc_function_def",
    "template_argument_list",
    "template_parameter_list",
    "static_assert_declaration",
    "using_declaration",
    "alias_declaration",
    "lambda_capture_specifier",
    "requires_clause",
    "noexcept",
    "attribute_declaration",
    "attribute_specifier",
    "throw_statement",
}
MESSAGES = {"fmt::format"}
# Calls that change speed only: to delete them, or to change what they are told, changes nothing that a test sees.
HINTS = {"reserve", "shrink_to_fit", "_mm_prefetch", "__builtin_prefetch"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """Bytes `start` to `end` become `text`; `before` and `after` are the lines that hold them, on one line each."""

    start: int
    end: int
    text: str
    line: int
    before: str
    after: str

    def apply(self, source):
        return source[: self.start] + self.text.encode() + source[self.end :]


def one_line(source):
    return " ".join(source.decode(errors="replace").split())


def called(statement):
    """The last name of what an expression statement calls, or nothing."""
    expression = statement.named_children[0] if statement.named_children else None
    if expression is None or expression.type != "call_expression":
        return ""
    function = expression.child_by_field_name("function").text.decode(errors="replace")
    return function.replace("->", ".").replace("::", ".").split(".")[-1].split("<")[0]


def integers(text):
    """A neighbour for an integer literal; a factor for another."""
    digits = text.rstrip("uUlLzZ")
    suffix = text[len(digits) :]
    if digits.replace("'", "").isdigit():
        return ["1" + suffix] if digits == "0" else ["0" + suffix] if digits == "1" else [f"({text} + 1)", f"({text} - 1)"]
    if text.lower().startswith("0x"):
        return [f"({text} + 1)"]
    return [f"({text} * 2)"]


def condition_of(node):
    """The expression that an `if`, a loop or a `?:` decides by."""
    condition = node.child_by_field_name("condition")
    if condition is not None and condition.type == "condition_clause":
        condition = condition.child_by_field_name("value")
    return None if condition is None or condition.type == "declaration" else condition


def changes(node):
    """Pairs (node to replace, text) that begin at this node."""
    kind = node.type
    if kind in ("binary_expression", "assignment_expression"):
        operator = node.child_by_field_name("operator")
        table = BINARY if kind == "binary_expression" else ASSIGNMENT
        yield from ((operator, text) for text in table.get(operator.type, []))
    elif kind == "update_expression":
        operator = node.child_by_field_name("operator")
        yield operator, "--" if operator.type == "++" else "++"
    elif kind == "unary_expression" and node.child_by_field_name("operator").type in ("!", "-", "~"):
        yield node.child_by_field_name("operator"), ""
    elif kind == "number_literal":
        yield from ((node, text) for text in integers(node.text.decode()))
    elif kind in ("true", "false"):
        yield node, "false" if kind == "true" else "true"
    elif kind in ("identifier", "field_identifier") and node.parent.type == "qualified_identifier":
        yield from ((node, text) for text in NAMES.get(node.text.decode(), []))
    elif kind in ("break_statement", "continue_statement", "throw_statement"):
        yield node, ";"
    elif kind == "expression_statement" and node.named_children:
        is_void = node.named_children[0].type == "cast_expression"
        if not is_void and called(node) not in HINTS:
            yield node, ";"
    if kind in ("if_statement", "while_statement", "do_statement", "for_statement", "conditional_expression"):
        condition = condition_of(node)
        if condition is not None and condition.type not in ("true", "false"):
            yield condition, "false"
            if kind in ("if_statement", "conditional_expression"):
                yield condition, "true"


def mutants_of(source):
    """All mutants of a source, given as bytes, in the order of the text."""
    found = []
    pending = [PARSER.parse(source).root_node]
    while pending:
        node = pending.pop()
        for target, text in changes(node):
            start, end = target.start_byte, target.end_byte
            first = source.rfind(b"\n", 0, start) + 1
            last = source.find(b"\n", end)
            last = len(source) if last < 0 else last
            after = source[first:start] + text.encode() + source[end:last]
            found.append(Mutant(start, end, text, target.start_point[0] + 1, one_line(source[first:last]), one_line(after)))
        if node.type in SKIPPED or node.type == "expression_statement" and called(node) in HINTS:
            continue
        if node.type == "call_expression" and node.child_by_field_name("function").text.decode() in MESSAGES:
            continue
        pending.extend(child for child in node.children if child.is_named)
    return sorted(set(found), key=lambda mutant: (mutant.start, mutant.end, mutant.text))
