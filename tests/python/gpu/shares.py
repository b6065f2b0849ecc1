"""The shares of a GPU's product rates that each kind of work reaches, in the form of `gpu_shares.json` of the command."""

from programs import Failed


def share(timed, operations, seconds, rate, what):
    """Of work that was timed, all of it together: its operations over its time at a rate of products."""
    took = sum(one[seconds] for one in timed)
    if took <= 0:
        raise Failed(f"there are no times of {what} to take a share from")
    return {"share": sum(one[operations] for one in timed) / took / rate, "from": f"tests/gpu: {what}"}


def shares(times):
    """From all that `device_times` has printed on a GPU."""
    rates = times["rates"]
    if not rates:
        raise Failed("there are no rates of products to take shares of")
    grams, solves, blocks = (times.get(key, []) for key in ["grams", "solves", "blocks"])
    return {
        "measured_on": times["hardware"],
        "includes_memory": True,
        "forward": share(blocks, "operations", "seconds", rates["bf16"], "blocks in bf16"),
        "gram": share(grams, "operations", "seconds", rates["bf16"], "observations in bf16"),
        "sweep": share(solves, "obs_operations", "obs_seconds", rates["f32"], "linears by obs"),
        "products": share(solves, "operations", "seconds", rates["f32"], "linears by admm, refined"),
    }
