"""A reward in a file of ten lines, as a user writes it: half for a box, half for the right answer in it."""


def reward(response, answer, row):
    boxes = response.split("\\boxed{")
    if len(boxes) == 1:
        return {"score": 0.0, "boxed": 0.0, "level": row["level"]}
    right = boxes[-1].split("}")[0].strip() == answer
    return {"score": 0.5 + 0.5 * right, "boxed": 1.0, "level": row["level"]}
