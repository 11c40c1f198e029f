"""The built-in signals: one function each, whose body is its formula.

A signal is a number per sample and head that is higher where the task drives the head more. Null means that it is undefined for
a sample, which its mean then leaves out. A public function of this file without arguments is a signal of its name. It returns
an expression over the measures; where that gives several columns, each is a signal of its own name. Nothing else need be
changed for a new one: the command line, the report, the documentation's test and the laws find it here.

The measures (docs/signals.md): `tokens`, `tokens_<span>`, `output_norm`, `result_norm`, `all_output_norm`,
`all_result_norm`, `entropy`, `entropy_free`, `largest`, `sink`, `rest`, `distance`, `mass_<span>`. As the settings choose them:
`norm`, of the query mode and `--head-output`; `last_norm` and `all_norm`, at the last token and over all positions;
`task_mass`, `task_rest` (without the first token) and `task_tokens`, of `--task-span`.
"""

import polars as pl


def out() -> pl.Expr:
    """Output strength ‖z‖₂, or ‖W_O z‖₂ with `--head-output result`.

    Range 0 and up. `all_tokens`: the mean over positions. It grows from layer to layer in most models, so it is comparable
    within a layer only. Source: the norm-based analysis of Kobayashi et al. (2020).
    """
    return pl.col("norm")


def ent() -> pl.Expr:
    """Focus of the attention: −H, H = −Σⱼ aⱼ ln aⱼ in nats, with 0 ln 0 = 0.

    Range −ln T to 0 for T tokens; a row of one token has 0, a uniform row −ln T. `all_tokens`: minus the mean entropy of all
    rows. Source: Shannon (1948).
    """
    return -pl.col("entropy")


def task() -> pl.Expr:
    """Attention to the task's tokens: Σ aⱼ over the tokens j of `--task-span`.

    Range 0 to 1; a sample without such tokens has 0. A longer span gets more of a uniform row: see `lift`.
    """
    return pl.col("task_mass")


def sink() -> pl.Expr:
    """Attention to the first token, a₀, where many heads rest when nothing else concerns them.

    Range 0 to 1; a row of one token has 1. Weight it below 0 to prefer heads that do not rest. Source: Xiao et al. (2024).
    """
    return pl.col("sink")


def focus() -> pl.Expr:
    """Focus of the attention relative to what is possible at the prompt's length: −H / ln T.

    Range −1 (uniform) to 0 (one token alone); undefined for a prompt of one token, where ln T = 0.
    """
    return pl.when(pl.col("tokens") > 1).then(-pl.col("entropy") / pl.col("tokens").log())


def ent_free() -> pl.Expr:
    """Focus of the attention without the first token: −H of the row without it, renormalised.

    Range −ln(T−1) to 0; undefined where all of the attention is on the first token. `all_tokens`: of the mean row.
    """
    return -pl.col("entropy_free")


def task_free() -> pl.Expr:
    """Attention to the task's tokens as a share of all but the first token's: Σ aⱼ over j > 0 in the span ÷ Σ aⱼ over j > 0.

    Range 0 to 1; undefined where all of the attention is on the first token.
    """
    return pl.when(pl.col("rest") > 0).then(pl.col("task_rest") / pl.col("rest"))


def largest() -> pl.Expr:
    """The largest weight of the row, maxⱼ aⱼ.

    Range 1/T (uniform) to 1 (one token alone).
    """
    return pl.col("largest")


def effective() -> pl.Expr:
    """Minus the effective number of tokens that the head attends to: −exp(H).

    Range −T (uniform) to −1 (one token alone). Source: the perplexity of a distribution, Jelinek et al. (1977).
    """
    return -pl.col("entropy").exp()


def near() -> pl.Expr:
    """Nearness of the attention: minus the mean distance Σⱼ aⱼ (T−1−j) from the last token, in tokens.

    Range −(T−1) (all on the first token) to 0 (all on the last one); of rows that sum to less than 1, the sum as it is.
    """
    return -pl.col("distance")


def lift() -> pl.Expr:
    """Attention to the task's tokens ÷ what a uniform row would give them: the mass of the span ÷ its share of the tokens.

    Range 0 to T; 1 is what uniform attention gives. Undefined for a sample without such tokens.
    """
    return pl.when(pl.col("task_tokens") > 0).then(pl.col("task_mass") * pl.col("tokens") / pl.col("task_tokens"))


def excess() -> pl.Expr:
    """Attention to the task's tokens beyond what a uniform row gives them: the mass of the span minus its share of the tokens.

    Range −1 to 1; 0 is what uniform attention gives, and what a sample without such tokens has.
    """
    return pl.col("task_mass") - pl.col("task_tokens") / pl.col("tokens")


def mass() -> pl.Expr:
    """Attention to each span: one signal `mass_<span>`, Σ aⱼ over the tokens j of the span, for every span of the cache.

    Range 0 to 1; a sample without such tokens has 0.
    """
    return pl.col("^mass_.*$")


def out_relative() -> pl.Expr:
    """Output strength at the last token ÷ the same head's mean over all positions.

    Range 0 and up; above 1 the head writes more where the answer is due than elsewhere. Undefined where it writes nothing.
    """
    return pl.when(pl.col("all_norm") > 0).then(pl.col("last_norm") / pl.col("all_norm"))


def out_all() -> pl.Expr:
    """Output strength over all positions: the mean of ‖z‖₂, or of ‖W_O z‖₂ with `--head-output result`.

    Range 0 and up; comparable within a layer only, as `out`.
    """
    return pl.col("all_norm")
