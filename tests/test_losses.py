import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwr_rllib.learning import losses

Q = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]])
PROBS = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])


def numbers(size, low=-5.0, high=5.0):
    return st.lists(st.floats(low, high, width=32), min_size=size, max_size=size)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


# Backups


def test_backup_golden():
    close(losses.backup(Q, "mean"), [2.0, 2.0])
    close(losses.backup(Q, "max"), [3.0, 6.0])
    # log((e + e^2 + e^3) / 3) and log((2 + e^6) / 3)
    close(losses.backup(Q, "logsumexp"), [2.3089937, 4.9063333])
    # 2 log((e^0.5 + e^1 + e^1.5) / 3) and 2 log((2 + e^3) / 3)
    close(losses.backup(Q, "logsumexp", temperature=2.0), [2.1633148, 3.9926213])


def test_backup_golden_under_probs():
    close(losses.backup(Q, "mean", probs=PROBS), [1.75, 1.5])
    close(losses.backup(Q, "max", probs=PROBS), [3.0, 6.0])
    # log(e / 2 + e^2 / 4 + e^3 / 4) and log(3 / 4 + e^6 / 4)
    close(losses.backup(Q, "logsumexp", probs=PROBS), [2.1075173, 4.6211144])


def test_backup_default_is_logsumexp_at_temperature_1():
    assert torch.equal(losses.backup(Q), losses.backup(Q, "logsumexp", 1.0))


@given(numbers(6), st.floats(0.125, 8.0))
def test_backup_equals_naive_loop(values, temperature):
    n = len(values)
    expected = temperature * math.log(sum(math.exp(v / temperature) for v in values) / n)
    q_values = torch.tensor(values, dtype=torch.float64)
    close(losses.backup(q_values, "logsumexp", temperature), expected)
    close(losses.backup(q_values, "mean"), sum(values) / n)
    close(losses.backup(q_values, "max"), max(values))


def test_backup_limits_of_the_temperature():
    close(losses.backup(Q, "logsumexp", 1e-4), [3.0, 6.0], atol=1e-3)
    close(losses.backup(Q, "logsumexp", 1e3), [2.0, 2.0], atol=1e-2)
    close(losses.backup(Q.double(), "logsumexp", 1e7), [2.0, 2.0])
    close(losses.backup(Q, "logsumexp", 1e-4, PROBS), [3.0, 6.0], atol=1e-3)
    close(losses.backup(Q.double(), "logsumexp", 1e7, PROBS.double()), [1.75, 1.5])


@given(numbers(5), st.floats(0.25, 16.0))
def test_backup_logsumexp_lies_between_mean_and_max(values, temperature):
    q_values = torch.tensor(values, dtype=torch.float64)
    between = losses.backup(q_values, "logsumexp", temperature)
    assert losses.backup(q_values, "mean") - 1e-6 <= between
    assert between <= losses.backup(q_values, "max") + 1e-6


@pytest.mark.parametrize("operator", ["mean", "max", "logsumexp"])
def test_backup_of_one_action_is_its_value(operator):
    q_values = torch.tensor([[3.5], [-2.0]])
    close(losses.backup(q_values, operator, 0.3), [3.5, -2.0])
    close(losses.backup(q_values, operator, 0.3, torch.ones(2, 1)), [3.5, -2.0])


@pytest.mark.parametrize("operator", ["mean", "max", "logsumexp"])
def test_backup_ignores_actions_that_mu_never_takes(operator):
    q_values = torch.tensor([1.0, 2.0, 1e6])
    probs = torch.tensor([0.75, 0.25, 0.0])
    without = losses.backup(q_values[:2], operator, 0.5, probs[:2])
    assert torch.equal(losses.backup(q_values, operator, 0.5, probs), without)


@pytest.mark.parametrize("operator", ["mean", "max", "logsumexp"])
def test_backup_takes_any_leading_shape(operator):
    q_values = torch.randn(4, 3, 2, 5)
    expected = [losses.backup(row, operator, 0.7) for row in q_values.reshape(-1, 5)]
    actual = losses.backup(q_values, operator, 0.7)
    assert actual.shape == (4, 3, 2)
    close(actual.flatten(), torch.stack(expected))


def test_backup_does_not_overflow():
    close(losses.backup(torch.tensor([1e4, -1e4]), "logsumexp", 0.1), 1e4 - 0.1 * math.log(2))


@pytest.mark.parametrize("operator", ["mean", "logsumexp"])
def test_backup_of_samples_tends_to_that_of_all_actions(operator):
    q_values, probs = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.2, 0.5, 0.3])
    samples = torch.multinomial(probs, 200_000, replacement=True)
    enumerated = losses.backup(q_values, operator, 0.8, probs)
    close(losses.backup(q_values[samples], operator, 0.8), enumerated, atol=2e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operator": "median"}, r"operator must be one of .*'logsumexp'.*, got 'median'"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"temperature": -1}, "temperature must be > 0, got -1"),
        ({"temperature": math.nan}, "temperature must be > 0, got nan"),
        ({"q_values": torch.ones(2, 0)}, r"q_values must be .*n >= 1, got \(2, 0\)"),
        ({"q_values": torch.tensor(1.0)}, r"q_values must be .* got \(\)"),
        ({"probs": torch.ones(2)}, r"probs must have .*\(2, 3\), got \(2,\)"),
    ],
)
def test_backup_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.backup(**({"q_values": Q} | arguments))


# Spread


def test_spread_golden():
    # Values 1 2 3 0 0 6 have mean 2, squared deviations 1 0 1 4 4 16.
    close(losses.spread(Q, "std", (0, 1)), [[math.sqrt(26 / 6) + 1e-5]])
    close(losses.spread(Q, "abs", (0, 1)), [[10 / 6 + 1e-5]])
    close(losses.spread(Q, "abs", (1,)), [[2 / 3 + 1e-5], [8 / 3 + 1e-5]])
    assert losses.spread(Q, "none", (0, 1)) == 1


def test_spread_golden_under_probs():
    # Mean (1.75 + 1.5) / 2 = 1.625; mean square (3.75 + 9) / 2 = 6.375;
    # absolute deviations 0.625 0.375 1.375 and 1.625 1.625 4.375, weighted 0.75 and 2.3125.
    close(losses.spread(Q, "std", (0, 1), PROBS), [[math.sqrt(6.375 - 1.625**2) + 1e-5]])
    close(losses.spread(Q, "abs", (0, 1), PROBS), [[1.53125 + 1e-5]])


def test_spread_ignores_actions_that_mu_never_takes():
    q_values, probs = torch.tensor([[1.0, 3.0, 1e6]]), torch.tensor([[0.5, 0.5, 0.0]])
    close(losses.spread(q_values, "std", (0, 1), probs), [[1 + 1e-5]])


def test_spread_of_equal_values_can_be_divided_by():
    for kind in ("std", "abs"):
        assert losses.spread(torch.ones(2, 3), kind, (0, 1)).item() == pytest.approx(1e-5)


def test_spread_refuses_an_unknown_kind():
    with pytest.raises(ValueError, match=r"kind must be one of .*'abs'.*, got 'iqr'"):
        losses.spread(Q, "iqr", (0, 1))


# Targets


def test_lambda_returns_golden():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    discounts = torch.full((2, 3), 0.5)
    next_values = torch.tensor([[10.0, 20.0, 40.0], [0.0, 0.0, 0.0]])
    # L_3 = 4 + 0.5 * 40 = 24;  L_2 = 2 + 0.5 * (0.25 * 20 + 0.75 * 24) = 13.5
    # L_1 = 1 + 0.5 * (0.25 * 10 + 0.75 * 13.5) = 7.3125
    # without values: L_2 = 2 + 0.5 * 0.75 * 4 = 3.5;  L_1 = 1 + 0.5 * 0.75 * 3.5 = 2.3125
    close(losses.lambda_returns(rewards, discounts, next_values, 0.75), [7.3125, 2.3125])


def mixture(rewards, next_values, gamma, lambda_):
    """Returns a slice's t-step returns, mixed by weights that sum to 1 (Sutton & Barto, 12.9)."""
    margin = len(rewards)
    total = 0.0
    for t in range(1, margin + 1):
        t_step = sum(gamma ** (i - 1) * rewards[i - 1] for i in range(1, t + 1))
        t_step += gamma**t * next_values[t - 1]
        weight = (1 - lambda_) * lambda_ ** (t - 1) if t < margin else lambda_ ** (margin - 1)
        total += weight * t_step
    return total


@given(st.data(), st.integers(1, 7), st.floats(0, 0.999), st.floats(0, 1))
def test_lambda_returns_mix_the_t_step_returns(data, margin, gamma, lambda_):
    rewards, next_values = data.draw(numbers(margin)), data.draw(numbers(margin))
    actual = losses.lambda_returns(
        torch.tensor(rewards, dtype=torch.float64),
        torch.full((margin,), gamma, dtype=torch.float64),
        torch.tensor(next_values, dtype=torch.float64),
        lambda_,
    )
    close(actual, mixture(rewards, next_values, gamma, lambda_))


def test_lambda_returns_do_not_shrink_a_constant_value():
    # With reward (1 - gamma) c and value c each t-step return is c, so the mixture must be c.
    actual = losses.lambda_returns(
        torch.full((3,), 0.01 * 7), torch.full((3,), 0.99), torch.full((3,), 7.0), 0.95
    )
    close(actual, 7.0)


@given(st.data(), st.integers(1, 5), st.booleans())
def test_nothing_behind_an_end_reaches_a_target(data, margin, terminated):
    end = data.draw(st.integers(0, margin - 1))
    rewards, next_values = data.draw(numbers(margin)), data.draw(numbers(margin))
    discounts, lambda_ = torch.full((margin,), 0.9), torch.full((margin,), 0.8)
    lambda_[end] = 0
    if terminated:
        discounts[end] = 0
        next_values[end] = 0.0
    expected = 0.0
    for t in range(end, -1, -1):  # the slice that ends there, by hand
        after = next_values[t] if t == end else 0.2 * next_values[t] + 0.8 * expected
        expected = rewards[t] + 0.9 * after
    for garbage in (0.0, 1e6):
        rewards[end + 1 :] = [garbage] * (margin - end - 1)
        next_values[end + 1 :] = [garbage] * (margin - end - 1)
        if terminated:
            next_values[end] = garbage
        actual = losses.lambda_returns(
            torch.tensor(rewards), discounts, torch.tensor(next_values), lambda_
        )
        close(actual, expected, atol=1e-4)


def test_a_cut_bootstraps_and_a_termination_does_not():
    rewards, next_values = torch.tensor([[1.0, 1.0]] * 2), torch.tensor([[5.0, 10.0]] * 2)
    discounts = torch.tensor([[0.5, 0.5], [0.5, 0.0]])
    lambda_ = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # cut: 1 + 0.5 * (1 + 0.5 * 10);  terminated: 1 + 0.5 * 1
    close(losses.lambda_returns(rewards, discounts, next_values, lambda_), [4.0, 1.5])


def test_lambda_returns_take_any_leading_shape():
    rewards, discounts, values = torch.randn(4, 2, 3), torch.rand(4, 2, 3), torch.randn(4, 2, 3)
    actual = losses.lambda_returns(rewards, discounts, values, 0.3)
    each = [
        losses.lambda_returns(rewards[i, j], discounts[i, j], values[i, j], 0.3)
        for i in range(4)
        for j in range(2)
    ]
    close(actual.flatten(), torch.stack(each))


def test_lambda_returns_take_lambda_as_number_or_tensor():
    args = torch.randn(2, 3), torch.rand(2, 3), torch.randn(2, 3)
    number = losses.lambda_returns(*args, 0.6)
    close(losses.lambda_returns(*args, torch.tensor(0.6)), number)
    close(losses.lambda_returns(*args, torch.full((2, 3), 0.6)), number)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rewards", torch.ones(2, 0), r"rewards must be .*T >= 1, got \(2, 0\)"),
        ("discounts", torch.ones(2), r"discounts must have .*\(2, 3\), got \(2,\)"),
        ("next_values", torch.ones(3, 2), r"next_values must have .*\(2, 3\), got \(3, 2\)"),
        ("lambda_", 1.5, r"lambda_ must be in \[0, 1\], got 1.5"),
        ("lambda_", -0.1, r"lambda_ must be in \[0, 1\], got -0.1"),
        ("lambda_", math.nan, r"lambda_ must be in \[0, 1\], got nan"),
        ("lambda_", torch.ones(3), r"lambda_ must be .*\(2, 3\), got \(3,\)"),
    ],
)
def test_lambda_returns_refuse(name, value, message):
    ones = torch.ones(2, 3)
    good = {"rewards": ones, "discounts": ones, "next_values": ones, "lambda_": 0.5}
    with pytest.raises(ValueError, match=message):
        losses.lambda_returns(**(good | {name: value}))


# Weights


def test_advantage_weights_golden():
    # Advantages -1 0 1 and -2 -2 4; at beta 2 the last is exp(2) = 7.389, clipped at 5.
    expected = [[0.6065307, 1.0, 1.6487213], [0.3678794, 0.3678794, 5.0]]
    close(losses.advantage_weights(Q, 2.0, 5.0, "none"), expected)


def test_advantage_weights_golden_scaled_within_states():
    # Mean squares of -1 0 1 and of -2 -2 4 are 2 / 3 and 8: divided by 0.8165066 and 2.8284371.
    expected = [[0.2938371, 1.0, 3.4032466], [0.4930699, 0.4930699, 4.1132298]]
    close(losses.advantage_weights(Q, scaling="state"), expected)


def test_advantage_weights_golden_scaled_within_states_under_probs():
    # Expected squares of -0.75 0.25 1.25 and -1.5 -1.5 4.5 under PROBS are 0.6875 and 6.75.
    first = [math.exp(a / (math.sqrt(0.6875) + 1e-5)) for a in (-0.75, 0.25, 1.25)]
    second = [math.exp(a / (math.sqrt(6.75) + 1e-5)) for a in (-1.5, -1.5, 4.5)]
    close(losses.advantage_weights(Q, scaling="state", probs=PROBS), [first, second])


def test_scaling_within_states_ignores_the_scale_of_each_state():
    q_values = torch.randn(16, 8, dtype=torch.float64)
    scales = 10 ** torch.linspace(-1, 4, 16, dtype=torch.float64).unsqueeze(-1)
    weights = losses.advantage_weights(q_values, scaling="state")
    close(losses.advantage_weights(scales * q_values, scaling="state"), weights, rtol=1e-3)


def test_advantage_weights_golden_scaled_by_the_median_of_the_states():
    # Standard deviations of -1 0 1, -2 -2 4 and 0 0 0 are 0.8164966, 2.8284271 and 0.
    q_values = torch.cat([Q, Q[:1] * 0 + 5])
    expected = [[0.2938371, 1.0, 3.4032466], [0.0863403, 0.0863403, 20.0], [1.0, 1.0, 1.0]]
    close(losses.advantage_weights(q_values, scaling="median"), expected)


def test_one_brink_state_does_not_flatten_the_weights_of_the_others():
    q_values = torch.randn(9, 8, dtype=torch.float64)
    more = torch.cat([q_values, 1e4 * q_values[:1]])
    weights = losses.advantage_weights(q_values, scaling="median")
    close(losses.advantage_weights(more, scaling="median")[:9], weights)
    close(losses.advantage_weights(more)[:9], torch.ones(9, 8), atol=0.01)


def test_advantage_weights_golden_scaled_over_the_minibatch():
    # Mean square of -1 0 1 -2 -2 4 is 26 / 6, so they are divided by 2.0816660 + 1e-5.
    expected = [[0.6185470, 1.0, 1.6166921], [0.3826003, 0.3826003, 6.8313931]]
    close(losses.advantage_weights(Q), expected)


def test_advantage_weights_golden_under_probs():
    # V is 1.75 and 1.5: advantages -0.75 0.25 1.25 and -1.5 -1.5 4.5.
    expected = [[0.4723666, 1.2840254, 3.4903430], [0.2231302, 0.2231302, 20.0]]
    close(losses.advantage_weights(Q, scaling="none", probs=PROBS), expected)


@given(
    st.data(),
    st.sampled_from(["state", "minibatch", "none"]),
    st.floats(0.25, 4.0),
    st.floats(1.5, 30.0),
)
def test_advantage_weights_equal_naive_loop(data, scaling, beta, max_weight):
    rows = [data.draw(numbers(4)) for _ in range(3)]
    advantages = [q - sum(row) / 4 for row in rows for q in row]
    groups = {"state": [range(0, 4), range(4, 8), range(8, 12)], "minibatch": [range(12)]}
    for group in groups.get(scaling, []):
        mean = sum(advantages[i] for i in group) / len(group)
        std = math.sqrt(sum((advantages[i] - mean) ** 2 for i in group) / len(group))
        for i in group:
            advantages[i] = (advantages[i] - mean) / (std + 1e-5)
    expected = [min(math.exp(a / beta), max_weight) for a in advantages]
    q_values = torch.tensor(rows, dtype=torch.float64)
    actual = losses.advantage_weights(q_values, beta, max_weight, scaling)
    close(actual.flatten(), expected)


def test_normalized_advantages_have_mean_0_and_biased_std_1():
    weights = losses.advantage_weights(torch.randn(64, 8, dtype=torch.float64), max_weight=1e9)
    assert weights.log().mean().item() == pytest.approx(0, abs=1e-9)
    assert weights.log().std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_normalized_advantages_have_these_moments_under_mu():
    probs = torch.rand(64, 5, dtype=torch.float64)
    probs /= probs.sum(-1, keepdim=True)
    advantages = losses.advantage_weights(
        torch.randn(64, 5).double(), 1.0, 1e9, "minibatch", probs
    ).log()
    assert (probs * advantages).sum(-1).mean().item() == pytest.approx(0, abs=1e-9)
    assert (probs * advantages.square()).sum(-1).mean().item() == pytest.approx(1, abs=1e-4)


def test_normalized_weights_ignore_shift_and_scale_of_q():
    q_values = torch.randn(16, 8, dtype=torch.float64)
    shift = torch.randn(16, 1, dtype=torch.float64)
    weights = losses.advantage_weights(q_values)
    close(losses.advantage_weights(100 * q_values + shift), weights, rtol=1e-3)


def test_normalizing_equal_values_gives_equal_weights():
    close(losses.advantage_weights(torch.full((4, 3), 7.0)), torch.ones(4, 3))


@pytest.mark.parametrize("scaling", ["median", "state", "minibatch", "none"])
def test_large_beta_is_behaviour_cloning(scaling):
    weights = losses.advantage_weights(Q, beta=1e8, scaling=scaling)
    assert torch.equal(weights, torch.ones(2, 3))


def test_small_beta_is_greedy_up_to_the_clip():
    weights = losses.advantage_weights(Q, beta=1e-3, max_weight=20.0)
    close(weights, [[0.0, 1.0, 20.0], [0.0, 0.0, 20.0]])


def test_one_action_has_weight_1():
    assert torch.equal(losses.advantage_weights(torch.randn(5, 1)), torch.ones(5, 1))


def test_the_clip_is_exact_and_does_not_touch_smaller_weights():
    q_values = torch.tensor([[-10.0, 10.0]])
    close(losses.advantage_weights(q_values, 1.0, 20.0, "none"), [[math.exp(-10), 20.0]])
    # 3 / 1 is just below log(20.1).
    q_values = torch.tensor([[-3.0, 3.0]])
    close(losses.advantage_weights(q_values, 1.0, 20.1, "none"), [[math.exp(-3), math.exp(3)]])


def test_huge_advantages_clip_instead_of_overflowing():
    weights = losses.advantage_weights(torch.tensor([[-1e30, 1e30]]), 1.0, 20.0, "none")
    close(weights, [[0.0, 20.0]])


def test_weights_of_samples_tend_to_those_of_all_actions():
    q_values, probs = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([[0.2, 0.5, 0.3]])
    samples = torch.multinomial(probs[0], 200_000, replacement=True)[None]
    sampled = losses.advantage_weights(q_values[:, samples[0]])
    enumerated = losses.advantage_weights(q_values, probs=probs)
    close(sampled, enumerated[:, samples[0]], rtol=2e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0}, "beta must be > 0, got 0"),
        ({"beta": -2.5}, "beta must be > 0, got -2.5"),
        ({"max_weight": 0.0}, "max_weight must be > 0, got 0.0"),
        ({"q_values": torch.ones(3, 0)}, r"q_values must be .* got \(3, 0\)"),
        ({"probs": torch.ones(3, 2)}, r"probs must have .*\(2, 3\), got \(3, 2\)"),
    ],
)
def test_advantage_weights_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.advantage_weights(**({"q_values": Q} | arguments))


def test_effective_sample_size_golden():
    weights = torch.tensor([[1.0, 1.0, 1.0], [4.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    close(losses.effective_sample_size(weights), [3.0, 1.0, 36 / 14])
    # 3 (0.5 + 0.5 + 0.75)^2 / (0.5 + 1 + 2.25)
    probs = torch.tensor([[0.5, 0.25, 0.25]])
    close(losses.effective_sample_size(weights[2:], probs), [3 * 1.75**2 / 3.75])


# Losses


def test_critic_loss_golden():
    q_values = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    # squared errors 0 4 9 1 1 1
    close(losses.critic_loss(q_values, targets), 16 / 6)


def test_actor_loss_golden():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, -4.0]])
    weights = torch.tensor([[2.0, 1.0, 0.0], [1.0, 5.0, 0.5]])
    # products -2 -2 0 -1 0 -2
    close(losses.actor_loss(log_probs, weights), 7 / 6)


@given(numbers(6), numbers(6))
def test_losses_equal_naive_loops(left, right):
    a = torch.tensor(left, dtype=torch.float64)
    b = torch.tensor(right, dtype=torch.float64)
    squared = sum((x - y) ** 2 for x, y in zip(left, right, strict=True)) / 6
    product = -sum(x * y for x, y in zip(left, right, strict=True)) / 6
    close(losses.critic_loss(a, b), squared)
    close(losses.actor_loss(a.view(2, 3), b.view(2, 3)), product)


def test_critic_loss_reaches_the_critic_only():
    critic, target, reward = (torch.randn(4, requires_grad=True) for _ in range(3))
    losses.critic_loss(critic, reward + 0.9 * target).backward()
    assert critic.grad is not None
    assert critic.grad.abs().sum() > 0
    assert target.grad is None
    assert reward.grad is None


def test_actor_loss_reaches_the_actor_only():
    actor, critic = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    losses.actor_loss(actor, critic.exp()).backward()
    assert actor.grad is not None
    assert actor.grad.abs().sum() > 0
    assert critic.grad is None


def test_weights_carry_no_gradient():
    critic = torch.randn(4, 3, requires_grad=True)
    assert not losses.advantage_weights(critic).requires_grad


@pytest.mark.parametrize(
    ("function", "name"),
    [(losses.critic_loss, "targets"), (losses.actor_loss, "weights")],
)
def test_losses_refuse_shapes_that_would_broadcast(function, name):
    with pytest.raises(ValueError, match=rf"{name} must have .*\(2, 3\), got \(2, 1\)"):
        function(torch.ones(2, 3), torch.ones(2, 1))


# The reduced forms


def gaussian_log_prob(mean, actions, std):
    density = torch.distributions.Normal(mean.unsqueeze(-2), std)
    return density.log_prob(actions).sum(-1)


def test_gaussian_regression_golden():
    # One state, two actions of weights 1 and 3.
    actions, weights = torch.tensor([[[0.0, 2.0], [4.0, 2.0]]]), torch.tensor([[1.0, 3.0]])
    regression = losses.gaussian_regression(actions, weights, 0.5)
    close(regression.actions, [[3.0, 2.0]])
    close(regression.weights, [2.0])
    # mean of 1 * 9 and 3 * 1 is 6, over 2 * 0.25; and 2 * 2 log(0.5 sqrt(2 pi))
    close(regression.offsets, [12 + 4 * math.log(0.5 * math.sqrt(2 * math.pi))])


def test_a_state_whose_weights_are_all_0_moves_no_mean():
    actions, weights = torch.tensor([[[3.0]], [[2.0]]]), torch.tensor([[0.0], [1.0]])
    regression = losses.gaussian_regression(actions, weights, 1.0)
    means = torch.zeros(2, 1)
    close(losses.gaussian_regression_loss_gradient(means, regression, 1.0), [[0.0], [-1.0]])
    # of the other state 2^2 / 2 + log sqrt(2 pi), over two states
    loss = losses.gaussian_regression_loss(means, regression, 1.0)
    close(loss, (2 + math.log(math.sqrt(2 * math.pi))) / 2)


@given(st.integers(1, 6), st.integers(1, 4), st.floats(0.1, 2.0), st.integers(0, 2**31))
@settings(max_examples=50)
def test_gaussian_regression_is_the_actor_loss(n, dims, std, seed):
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(5, n, dims, generator=generator, dtype=torch.float64)
    weights = 0.01 + torch.rand(5, n, generator=generator, dtype=torch.float64)
    means = torch.randn(5, dims, generator=generator, dtype=torch.float64, requires_grad=True)

    full = losses.actor_loss(gaussian_log_prob(means, actions, std), weights)
    regression = losses.gaussian_regression(actions, weights, std)
    reduced = losses.gaussian_regression_loss(means, regression, std)
    close(reduced, full.item())
    (of_full,) = torch.autograd.grad(full, means)
    (of_reduced,) = torch.autograd.grad(reduced, means)
    close(of_reduced, of_full)


@pytest.mark.parametrize("enumerate_all", [False, True])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=25)
def test_categorical_regression_is_the_actor_loss(enumerate_all, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    probs = None
    actions = torch.randint(4, (5, 7), generator=generator)
    if enumerate_all:
        actions = torch.arange(4).expand(5, 4)
        probs = torch.rand(5, 4, generator=generator, dtype=torch.float64).softmax(-1)
    weights = torch.rand(actions.shape, generator=generator, dtype=torch.float64)

    log_probs = logits.log_softmax(-1).gather(-1, actions)
    scaled = weights if probs is None else weights * 4 * probs
    full = losses.actor_loss(log_probs, scaled)
    reduced = losses.categorical_regression_loss(
        logits, losses.categorical_regression(actions, weights, 4, probs)
    )
    close(reduced, full.item())
    (of_full,) = torch.autograd.grad(full, logits)
    (of_reduced,) = torch.autograd.grad(reduced, logits)
    close(of_reduced, of_full)


def test_categorical_regression_golden():
    actions, weights = torch.tensor([[2, 0, 2, 2]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    close(losses.categorical_regression(actions, weights, 4), [[0.5, 0.0, 2.0, 0.0]])
    # Enumerated: mu(a|s) w_a.
    actions, weights = torch.tensor([[0, 1, 2]]), torch.tensor([[1.0, 2.0, 4.0]])
    close(losses.categorical_regression(actions, weights, 3, PROBS[:1]), [[0.5, 0.5, 1.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: losses.gaussian_regression(torch.ones(2, 3, 1), torch.ones(2, 3), 0.0),
            "action_std must be > 0, got 0.0",
        ),
        (
            lambda: losses.gaussian_regression(torch.ones(2, 3, 1), torch.ones(2), 0.4),
            r"weights must have .*\(2, 3\).*, got \(2,\)",
        ),
        (
            lambda: losses.categorical_regression(
                torch.zeros(2, 3).long(), torch.ones(2, 3), 3, torch.ones(2)
            ),
            r"probs must have .*\(2, 3\), got \(2,\)",
        ),
        (
            lambda: losses.effective_sample_size(torch.ones(2, 0)),
            r"must be .*n >= 1, got \(2, 0\)",
        ),
    ],
)
def test_reduced_forms_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
