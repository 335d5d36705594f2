// Conversations and settings, kept in this browser alone. A browser that keeps nothing still chats.

const NAME = "remoe-edge";
export const state = { conversations: [], current: null, settings: {}, theme: "" };

export function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(NAME) ?? "{}");
    if (Array.isArray(kept.conversations)) Object.assign(state, kept);
  } catch {
    // What cannot be read is begun anew.
  }
  if (!current()) begin();
}

export function save() {
  try {
    localStorage.setItem(NAME, JSON.stringify(state));
    return true;
  } catch {
    return false;
  }
}

export const current = () => state.conversations.find((each) => each.id === state.current);

export function begin() {
  const empty = state.conversations.find((each) => !each.messages.length);
  const made = empty ?? { id: `${Date.now()}-${Math.random()}`, messages: [] };
  if (!empty) state.conversations.unshift(made);
  state.current = made.id;
}

export function remove(id) {
  state.conversations = state.conversations.filter((each) => each.id !== id);
  if (state.current === id) state.current = state.conversations[0]?.id ?? null;
  if (!current()) begin();
}

export const title = (conversation) => conversation.messages[0]?.content.slice(0, 60) || "New conversation";
