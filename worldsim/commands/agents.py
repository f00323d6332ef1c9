"""Verbs of agents: agent train, agent eval, agent plan."""

from __future__ import annotations

from collections.abc import Sequence

from worldsim.commands.parsing import parse
from worldsim.errors import MissingDependency


def agent_train(args: Sequence[str]) -> None:
    """Let an agent learn a game by PPO, inside a world or in the game itself.

    Example: worldsim agent train car-racing --world car-racing-wild --starts-from data/car-racing --where ground=grass
    A run that was stopped goes on when the same command is run again.
    """
    require_learner()
    from worldsim.agents.training import AgentConfig
    from worldsim.agents.training import train_agent as run

    config = parse(AgentConfig, "agent train", args, agent_train.__doc__)
    run(config)
    print(f"the agent is in {config.folder()}; let it play with: worldsim agent eval {config.folder()}")


def agent_eval(args: Sequence[str]) -> None:
    """Let an agent play whole episodes, in the real game or in a world, and say how well it does.

    Example: worldsim agent eval runs/agent-car-racing-dream --episodes 100
    """
    require_learner()
    from worldsim.agents.evaluation import AgentEvalConfig, line
    from worldsim.agents.evaluation import evaluate_agent as run

    print(line(run(parse(AgentEvalConfig, "agent eval", args, agent_eval.__doc__))))


def agent_plan(args: Sequence[str]) -> None:
    """Play by looking ahead in a world, without learning or with an agent in the futures.

    Example: worldsim agent plan runs/doom-take-cover/world --game doom-take-cover --episodes 10
    """
    require_learner()
    from worldsim.agents.evaluation import line
    from worldsim.agents.planner import PlanConfig
    from worldsim.agents.planner import plan as run

    print(line(run(parse(PlanConfig, "agent plan", args, agent_plan.__doc__))))


def require_learner() -> None:
    """Check that the learner is installed.

    Raises:
        MissingDependency: it is not.
    """
    from importlib.util import find_spec

    if find_spec("stable_baselines3") is None:
        raise MissingDependency("stable-baselines3", "an agent", "pip install 'worldsim-engine[agents]'")
