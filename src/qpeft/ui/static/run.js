"use strict";
/* The chat of a run's page, and busy buttons of forms that load a model. */
(() => {
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.id === "chat") return ask(event, form);
    if (!form.dataset.busy) return;
    for (const button of form.querySelectorAll("button")) { button.disabled = true; button.textContent = form.dataset.busy; }
  });
  async function ask(event, chat) {
    event.preventDefault();
    const button = chat.querySelector("button"), said = document.getElementById("chat-said");
    button.disabled = true;
    said.textContent = chat.dataset.waiting;
    try {
      const answer = await fetch("/chat", { method: "POST", body: new URLSearchParams(new FormData(chat)), credentials: "same-origin" });
      const found = await answer.json();
      said.textContent = found.error ?? "";
      for (const name of ["adapter", "base"]) document.getElementById(`chat-${name}`).textContent = found[name] ?? "";
    } catch (error) {
      said.textContent = String(error);
    } finally {
      button.disabled = false;
    }
  }
})();
