export function drawCharts() {}
export function refreshCharts() {}
export function redrawCharts() {}
