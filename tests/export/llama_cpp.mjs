// llama.cpp itself, asked as JSON on stdin: {model, lora, texts, prompts, tokens} -> {ids, answers, template, eog} on stdout.
import { readFileSync } from "node:fs";
import { getLlama } from "node-llama-cpp";

const asked = JSON.parse(readFileSync(0, "utf8"));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 1 });
const model = await llama.loadModel({ modelPath: asked.model });
const ids = (asked.texts ?? []).map((text) => [...model.tokenize(text, asked.special ?? false)]);
const answers = [];
if (asked.prompts?.length) {
    const lora = asked.lora ? { adapters: [{ filePath: asked.lora, scale: 1 }] } : undefined;
    const context = await model.createContext({ contextSize: asked.context ?? 1024, threads: 1, lora });
    for (const prompt of asked.prompts) {
        const sequence = context.getSequence();
        const answer = [];
        for await (const token of sequence.evaluate(prompt, { temperature: 0 })) {
            answer.push(token);
            if (model.isEogToken(token) || answer.length >= asked.tokens) break;
        }
        answers.push(answer);
        sequence.dispose();
    }
}
const template = model.fileInfo.metadata?.tokenizer?.chat_template ?? null;
process.stdout.write(JSON.stringify({ ids, answers, template }));
process.exit(0);
