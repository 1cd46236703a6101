// Sends questions to the server and reads the messages of the answer as they come.
import { askExample } from "./playground-example.js";

// Calls onMessage for each message. Throws an Error with a sentence for the user, or an AbortError when cancelled.
export async function ask(question, onMessage, signal) {
  if (!question.model) return void askExample(question, onMessage);
  const answer = await send(question, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "", last = {};
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (pending + value).split("\n");
    pending = lines.pop();
    for (const line of lines) {
      last = JSON.parse(line);
      if (last.error) throw new Error(last.error);
      onMessage(last);
    }
  }
  if (!last.end) throw new Error("the answer ended early; is the dashboard still running?");
}

async function send(question, signal) {
  let answer;
  try {
    answer = await fetch("/playground/ask", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question), signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the dashboard cannot be reached; is it still running?");
  }
  if (!answer.ok) throw new Error(await reasonOf(answer));
  return answer;
}

async function reasonOf(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error;
  } catch {
    return text.slice(0, 300) || `the dashboard answered ${answer.status}`;
  }
}
