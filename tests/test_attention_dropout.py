"""scaled_dot_product_attention: which elements dropout drops, and what that does."""

import torch

from judging import assert_accurate, convert, widen
from suite import DTYPES, OpSuite, results
from test_attention import draw, sdpa


def philox(seed, counter):
    """Philox4x32-10, as published (Salmon et al. 2011)."""
    words, key = list(counter), [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        low = 0xFFFFFFFF
        words = [(b >> 32) ^ words[1] ^ key[0], b & low, (a >> 32) ^ words[3] ^ key[1], a & low]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return words


class TestDropout:
    pytest_generate_tests = OpSuite.pytest_generate_tests
    cases = rejects = ()
    dtypes = DTYPES
    place = OpSuite.place

    def test_random_bits_are_philox(self):
        assert philox(0, [0] * 4) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # Random123
        seed, p = 0x0123456789ABCDEF, 0.3
        kept = torch.ops.pyops.attention_dropout(torch.tensor(seed), p, [1, 1, 3, 130])
        for row in range(3):
            for key in (0, 1, 15, 16, 63, 64, 129):
                words = philox(seed, [key // 64 * 16 + key % 16, 0, row, 0])
                assert kept[0, 0, row, key] == (words[key % 64 // 16] >= int(p * (2**32 - 1)))

    def test_is_the_composite_with_this_mask(self, dtype, place):
        """Output and every gradient, from the same seed, through every kernel."""
        inputs = draw(2, 4, 37, 300, 8, g=2, dtype=dtype, device=place)
        arguments = {**inputs, "dropout_p": 0.4, "enable_gqa": True, "is_causal": True}
        ours = results(sdpa, arguments)
        torch.manual_seed(0)  # as results() does
        seed = torch.randint(2**63 - 1, (), device=place)
        kept = torch.ops.pyops.attention_dropout(seed, 0.4, [2, 4, 37, 300])

        def composite(dropout_p, **arguments):
            return torch.ops.aten._scaled_dot_product_attention_math(
                **arguments, dropout_p=dropout_p, dropout_mask=kept
            )[0]

        wide = results(composite, convert(arguments, widen))
        native = results(composite, arguments)
        assert_accurate(ours, native, wide, max_zeros=1.0)  # of 300 keys 37 are seen

    def test_drops_its_share(self, device):
        seed = torch.tensor(7, device=device)
        for p in (0.1, 0.5, 0.9):
            kept = torch.ops.pyops.attention_dropout(seed, p, [2, 3, 200, 200]).float()
            deviation = (p * (1 - p) / kept.numel()) ** 0.5
            assert abs(kept.mean().item() - (1 - p)) < 5 * deviation
            for dim in range(4):  # neighbours agree no more often than chance
                agree = (
                    kept.narrow(dim, 1, kept.shape[dim] - 1)
                    == kept.narrow(dim, 0, kept.shape[dim] - 1)
                ).double()
                chance = p**2 + (1 - p) ** 2
                assert abs(agree.mean().item() - chance) < 6 * (1 / agree.numel()) ** 0.5

    def test_all_and_nothing(self, place):
        inputs = draw(1, 2, 5, 7, 8, device=place)
        everything = results(sdpa, {**inputs, "dropout_p": 1.0})
        assert not any(t.any() for t in everything.values())
        state = torch.get_rng_state()
        assert torch.equal(sdpa(**inputs, dropout_p=0.0), sdpa(**inputs))
        assert torch.equal(torch.get_rng_state(), state)

    def test_seed_follows_the_generator(self, device):
        inputs = draw(1, 2, 5, 7, 8, device=device)
        torch.manual_seed(1)
        first, second = (sdpa(**inputs, dropout_p=0.5) for _ in range(2))
        torch.manual_seed(1)
        assert torch.equal(sdpa(**inputs, dropout_p=0.5), first)
        assert not torch.equal(first, second)

    def test_second_order(self, device):
        inputs = draw(1, 2, 3, 4, 3, dtype=torch.float64, device=device)

        def function(query, key, value):
            torch.manual_seed(3)
            return sdpa(query, key, value, dropout_p=0.4)

        assert torch.autograd.gradcheck(function, tuple(inputs.values()))
        assert torch.autograd.gradgradcheck(function, tuple(inputs.values()))

    def test_compiled_draws_a_new_seed_each_call(self, device):
        torch._dynamo.reset()
        inputs = draw(1, 2, 5, 70, 8, device=device)

        def dropped(**arguments):
            return sdpa(**arguments, dropout_p=0.5)

        compiled = torch.compile(dropped, fullgraph=True, backend="aot_eager")
        eager, first = (results(f, inputs) for f in (dropped, compiled))
        for name in eager:
            assert torch.equal(first[name], eager[name]), name
        assert not torch.equal(compiled(**inputs), compiled(**inputs))
