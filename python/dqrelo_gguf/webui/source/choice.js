// What a column runs: the base, a model by its name with a scale, or a blend of parts.
// A choice is { model, scale, parts }: `model` is "" for the base, and does not count where there are parts.

export const MAX_PARTS = 8;

export const baseChoice = () => ({ model: "", scale: 1, parts: [] });
export const modelChoice = (model) => ({ model, scale: 1, parts: [] });

// The fields of a request that say which model answers.
export function requestFields(choice) {
  if (choice.parts.length > 0) {
    return { deltas: choice.parts.map(({ name, scale }) => ({ name, scale })) };
  }
  if (choice.model === "") {
    return {}; // The base answers to requests without a name.
  }
  return choice.scale === 1 ? { model: choice.model } : { model: choice.model, delta_scale: choice.scale };
}

// The server keeps scales as 32-bit floats, so 0.6 comes back with more digits.
const rounded = (scale) => Number(scale.toFixed(4));

// Parts as a blend is written.
export const specOf = (parts) => parts.map(({ name, scale }) => `${name}*${rounded(scale)}`).join("+");

// How a column is called.
export function title(choice, base) {
  if (choice.parts.length > 0) {
    return specOf(choice.parts);
  }
  if (choice.model === "") {
    return base || "base";
  }
  return choice.scale === 1 ? choice.model : `${choice.model}*${choice.scale}`;
}

// The same as a blend whose parts can be changed. `blends` are those that have a name.
export function asBlend(choice, blends, firstName) {
  if (choice.parts.length > 0) {
    return choice;
  }
  const named = blends.find((blend) => blend.name === choice.model);
  const parts = named ? named.deltas : [{ name: choice.model || firstName, scale: 1 }];
  return { model: "", scale: 1, parts: parts.map(({ name, scale }) => ({ name, scale: rounded(scale * choice.scale) })) };
}
